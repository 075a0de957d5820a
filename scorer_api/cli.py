"""The kv-indexer command."""

import argparse
import asyncio
import math
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn

import uvloop
import zmq

from indexer import __version__, demo_engine, logs
from indexer.allocation import share_one_arena
from indexer.config_file import ConfigFile, read_file
from indexer.errors import SettingError
from indexer.settings import PREFIX, Settings, fields, read_settings
from scorer_api import demo, score_command
from scorer_api.server import serve

USAGE_ERROR = 2
# The receiving thread gets the interpreter so soon after it asks for it.
SWITCH_INTERVAL_S = 0.001
# Connections and engines cost open files; many systems allow 1,024 unless a process asks for more. More than this is not asked for.
OPEN_FILES_MAX = 65_536


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where something failed, 2 where the user's words were wrong."""
    parsed = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = parsed.command
        return command(parsed)
    except SettingError as error:
        print(f"kv-indexer: {error}", file=sys.stderr)  # noqa: T201 - the one line that says why the start stops
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kv-indexer", description="Tells any LLM router which pod already holds the longest prefix of a prompt.")
    parser.add_argument("--version", action="version", version=f"kv-indexer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serving = commands.add_parser("serve", help="follow engines and answer scores over HTTP", allow_abbrev=False)
    serving.add_argument(
        "--engine", action="append", default=[], metavar="SPEC", help="pod=…,model=…,events=tcp://…[,replay=tcp://…]; may be repeated"
    )
    serving.add_argument("--config", metavar="FILE", help="a TOML file with any of these settings; read again on SIGHUP and when it changes")
    _add_settings(serving)
    serving.set_defaults(command=_serve)

    scoring = commands.add_parser("score", help="ask a running service for the scores of a prompt", allow_abbrev=False)
    score_command.add_arguments(scoring)
    scoring.set_defaults(command=score_command.run)

    demonstrating = commands.add_parser("demo", help="serve two demo engines, so that there is something to see", allow_abbrev=False)
    _add_settings(demonstrating)
    demonstrating.set_defaults(command=_demo)

    engine = commands.add_parser("demo-engine", help="an engine without a model that speaks the wire protocol; prints its spec", allow_abbrev=False)
    engine.add_argument("--pod", default="demo-0")
    engine.add_argument("--model", default=demo.MODEL)
    engine.add_argument("--chats", default="1,2,3,4,5,6,7,8", metavar="N,N,…", type=_numbers, help="numbers of the chats that it serves")
    engine.add_argument("--blocks", default=128, type=_positive(int), help="how many blocks it caches")
    engine.add_argument("--events-port", default=0, type=_port, help="default: a free one")
    engine.add_argument("--replay-port", default=0, type=_port, help="default: a free one")
    engine.add_argument("--with-parent", action="store_true", help="stop when standard input ends, as it does when the parent dies")
    engine.add_argument("--requests-per-s", default=4.0, type=_positive(float))
    engine.set_defaults(command=_demo_engine)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    for field in fields():
        shown = f"{field.description} (default: {field.default!r})".replace("%", "%%")
        parser.add_argument(field.flag, dest=field.name, default=argparse.SUPPRESS, metavar="VALUE", help=shown)


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} should be numbers from 1 to 999999, separated by commas")
    return [int(part) for part in text.split(",")]


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} should be a port, from 0 to 65535")
    return int(text)


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def positive(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} should be a number above 0")
        return value

    return positive


def _settings(parsed: argparse.Namespace, engines: Sequence[str], config: str | None = None) -> Settings:
    flags = {field.name: getattr(parsed, field.name) for field in fields() if hasattr(parsed, field.name)}
    settings = read_settings(flags, engines, os.environ, read_file(config) if config else None)
    logs.configure(settings.log_format, settings.log_level)
    return settings


def _serve(parsed: argparse.Namespace) -> int:
    config = parsed.config or os.environ.get(PREFIX + "CONFIG")

    def read() -> Settings:
        return _settings(parsed, parsed.engine, config)

    async def until_stopped(stop: asyncio.Event) -> None:
        settings = read()
        if not config:
            return await serve(settings, stop)
        file = ConfigFile(config, read)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, file.asked.set)
        return await serve(settings, stop, changed=file.changed)

    return _run(until_stopped)


def _demo(parsed: argparse.Namespace) -> int:
    return _run(lambda stop: demo.run(lambda engines: _settings(parsed, engines), stop))


def _demo_engine(parsed: argparse.Namespace) -> int:
    async def until_stopped(stop: asyncio.Event) -> None:
        if parsed.with_parent:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
        ports = parsed.events_port, parsed.replay_port
        serving = demo_engine.run(parsed.pod, parsed.model, parsed.chats, parsed.blocks, parsed.requests_per_s, *ports)
        engine = asyncio.create_task(serving, name="demo engine")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait([engine, stopping], return_when=asyncio.FIRST_COMPLETED)
        engine.cancel()
        stopping.cancel()
        for outcome in await asyncio.gather(engine, stopping, return_exceptions=True):
            if isinstance(outcome, zmq.ZMQError):
                raise SettingError("--events-port and --replay-port", ports, f"cannot listen there: {outcome.strerror}")
            if isinstance(outcome, Exception):
                raise outcome

    return _run(until_stopped)


def _run(act: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run with a stop event that SIGTERM and SIGINT set."""

    async def with_signals() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await act(stop)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(OPEN_FILES_MAX, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    share_one_arena()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(with_signals())
    return 0


if __name__ == "__main__":
    sys.exit(main())
