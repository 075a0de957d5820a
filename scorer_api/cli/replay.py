"""`kv-indexer replay`: play a recording as the engines would."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator

from indexer.errors import SettingError
from indexer.main.command import run as run_until_stopped
from indexer.simulation.capture import Message, read_exchanges, read_messages, replays_beside
from indexer.simulation.player import Player
from indexer.simulation.publisher import LOOPBACK
from scorer_api.cli.argument_types import port, positive
from scorer_api.cli.stop_event import unless_stopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("file", metavar="FILE", help="PREFIX.frames.msgpack; PREFIX.replays.msgpack beside it is read too")
    parser.add_argument("--engine", metavar="NAME", help="play this engine of the file only")
    parser.add_argument("--model", help="the model in the specs; default: what the topic kv@pod@model says")
    parser.add_argument("--host", default=LOOPBACK, help="address to listen on; 0.0.0.0 for every one of this machine's (default: %(default)s)")
    parser.add_argument(
        "--events-port", default=0, type=port, help="port of the first engine; each further one has the next port; default: free ones"
    )
    parser.add_argument("--replay-port", default=0, type=port, help="the same for replays")
    parser.add_argument("--without-replay", action="store_true", help="answer no replays, as engines do by default")
    parser.add_argument(
        "--speed", default=1.0, type=_speed, help="recorded seconds per second, or max for as fast as possible (default: %(default)s)"
    )
    parser.add_argument(
        "--at-once", action="store_true", help="start without waiting for a subscriber, which then learns what it missed from replays"
    )
    parser.add_argument("--steps", action="store_true", help="play step by step from standard input: a number of messages, stop ENGINE, start ENGINE")
    parser.add_argument("--end", action="store_true", help="end after the last message; otherwise replays are answered until the command is stopped")
    parser.set_defaults(command=run)


def _speed(text: str) -> float | None:
    """None for as fast as possible."""
    try:
        speed: float | None = None if text == "max" else positive(float)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} should be max or a number above 0") from None
    return speed


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError for a file or an address that cannot be used."""
    messages = _messages(parsed)
    replays = replays_beside(parsed.file)
    player = Player(
        messages,
        read_exchanges(replays) if replays is not None else [],
        host=parsed.host,
        events_port=parsed.events_port,
        replay_port=parsed.replay_port,
        speed=None if parsed.steps else parsed.speed,
        with_replay=not parsed.without_replay,
    )
    if max(parsed.events_port, parsed.replay_port) + len(player.engines) > 65536:
        raise SettingError(
            "--events-port and --replay-port", (parsed.events_port, parsed.replay_port), "leave too few ports for the engines of the file"
        )

    async def play(stop: asyncio.Event) -> None:
        async with player:
            for engine in player.engines.values():
                _print(engine.spec(parsed.host, parsed.model))
            await unless_stopped(stop, _play(parsed, player))
            if not parsed.end:
                await stop.wait()

    return run_until_stopped(play)


async def _play(parsed: argparse.Namespace, player: Player) -> None:
    if not parsed.at_once:
        await player.subscribed()
    if parsed.steps:
        async for line in player.run_steps(_lines()):
            _print(line)
    else:
        await player.play()
    print(f"kv-indexer: played {player.played} messages", file=sys.stderr, flush=True)  # noqa: T201 - progress


async def _lines() -> AsyncIterator[str]:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode(errors="replace")


def _messages(parsed: argparse.Namespace) -> list[Message]:
    messages, cut = read_messages(parsed.file)
    if cut:
        print(f"kv-indexer: {parsed.file}: {cut} bytes at its end are an incomplete entry and are ignored", file=sys.stderr)  # noqa: T201 - a warning
    names = dict.fromkeys(message.engine for message in messages)
    if not messages:
        raise SettingError("FILE", parsed.file, "holds no messages")
    if parsed.engine is not None and parsed.engine not in names:
        raise SettingError("--engine", parsed.engine, f"is not in {parsed.file}; engines there are {', '.join(names)}")
    return [message for message in messages if parsed.engine in (None, message.engine)]


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the command's output
