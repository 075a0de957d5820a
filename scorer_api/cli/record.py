"""`kv-indexer record`: write what engines publish to files."""

import argparse
import asyncio
import sys

from indexer.engines.spec import EngineSpec
from indexer.errors import SettingError
from indexer.main.command import run as run_until_stopped
from indexer.simulation.capture import CaptureError
from indexer.simulation.recorder import Recorder, RecordingLimits, Source
from scorer_api.cli.argument_types import positive

ALONE = "A"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--engine", action="append", default=[], metavar="SPEC", help="pod=…,model=…,events=tcp://…[,replay=tcp://…]; may be repeated"
    )
    parser.add_argument("--events", metavar="ENDPOINT", help=f"in place of --engine: the events of one engine, which the files call {ALONE}")
    parser.add_argument("--replay", metavar="ENDPOINT", help="with --events: the replay endpoint of that engine")
    parser.add_argument("--out", required=True, metavar="PREFIX", help="writes PREFIX.frames.msgpack and, with replays, PREFIX.replays.msgpack")
    parser.add_argument("--seconds", type=positive(float), help="end after this many seconds")
    parser.add_argument("--frames", type=positive(int), metavar="N", help="end after this many messages")
    parser.add_argument("--bytes", type=positive(int), default=2**30, metavar="N", help="end before the files are larger (default: %(default)s)")
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code: 1 if a file could not be written completely, or an engine was never reached. Raises SettingError."""
    sources = [source for spec in _specs(parsed) for source in Source.of(spec)]
    if len({source.name for source in sources}) < len(sources):
        raise SettingError("--engine", ";".join(parsed.engine), "the names of pods have to differ, so that each stream has one")
    limits = RecordingLimits(parsed.seconds, parsed.frames, parsed.bytes)
    failures: list[str] = []

    async def record(stop: asyncio.Event) -> None:
        async with Recorder(sources, parsed.out, limits) as recorder:
            await recorder.run(stop)
        for stream in recorder.streams:
            lost = f", {stream.inbox.dropped} arrived faster than they could be written" if stream.inbox.dropped else ""
            _print(f"{stream.source.name}: {stream.messages} messages, {stream.gaps} gaps{lost}")
            if not stream.epoch:
                failures.append(f"{stream.source.name} was never reached: {stream.inbox.error}")
        for writer in (recorder.frames, recorder.replays):
            if writer is not None:
                _print(f"{writer.path}: {writer.items} entries, {writer.size} bytes")

    try:
        run_until_stopped(record)
    except CaptureError as error:
        failures.append(str(error))
    for line in failures:
        print(f"kv-indexer: {line}", file=sys.stderr)  # noqa: T201 - the command's line of error
    return 1 if failures else 0


def _specs(parsed: argparse.Namespace) -> list[EngineSpec]:
    if bool(parsed.engine) == (parsed.events is not None):
        raise SettingError("--engine", parsed.engine or None, "one of --engine and --events is required, and not both")
    if parsed.events is None and parsed.replay is not None:
        raise SettingError("--replay", parsed.replay, "goes with --events; with --engine it is a key of the spec")
    if parsed.engine:
        return [EngineSpec.from_text(text) for text in parsed.engine]
    endpoints = {key: value for key, value in (("events", parsed.events), ("replay", parsed.replay)) if value is not None}
    return [EngineSpec.from_mapping({"pod": ALONE, "model": "any", **endpoints}, "--events", parsed.events)]


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the command's output
