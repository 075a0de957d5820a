"""`kv-indexer demo-engine`: an engine without a model, for trying things out."""

import argparse
import asyncio
import re
import sys

import zmq

from indexer.errors import SettingError
from indexer.main.command import run as run_until_stopped
from indexer.simulation import demo_engine
from indexer.simulation.demo_engine import MODEL
from indexer.simulation.publisher import LOOPBACK
from scorer_api.cli.argument_types import port, positive
from scorer_api.cli.stop_event import unless_stopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--pod", default="demo-0", help="the name of the pod in its topic and spec")
    parser.add_argument("--model", default=MODEL, help="the name of the model in its topic and spec")
    parser.add_argument("--chats", default="1,2,3,4,5,6,7,8", metavar="N,N,…", type=_numbers, help="numbers of the chats that it serves")
    parser.add_argument("--blocks", default=128, type=positive(int), help="how many blocks it caches")
    parser.add_argument("--host", default=LOOPBACK, help="address that it listens on; 0.0.0.0 for every one of this machine's")
    parser.add_argument("--events-port", default=0, type=port, help="default: a free one")
    parser.add_argument("--replay-port", default=0, type=port, help="default: a free one")
    parser.add_argument(
        "--snapshot-port",
        type=port,
        help="where it answers requests for snapshots, as vLLM's proposal 57789 has it; 0: a free one; default: the replay port, as 50134 has it",
    )
    parser.add_argument("--http-port", default=0, type=port, help="where it completes and tokenizes prompts; default: a free one")
    parser.add_argument("--with-parent", action="store_true", help="stop when standard input ends, as it does when the parent dies")
    parser.add_argument("--requests-per-s", default=4.0, type=positive(float), help="how many chat turns it serves a second")
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError for an address that cannot be used."""
    address = parsed.host, parsed.events_port, parsed.replay_port, parsed.http_port, parsed.snapshot_port

    async def serve(stop: asyncio.Event) -> None:
        if parsed.with_parent:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
        try:
            await unless_stopped(stop, demo_engine.run(parsed.pod, parsed.model, parsed.chats, parsed.blocks, parsed.requests_per_s, *address))
        except (zmq.ZMQError, OSError) as error:
            where = "--host, --events-port, --replay-port, --snapshot-port and --http-port"
            raise SettingError(where, address, f"cannot listen there: {error.strerror}") from None

    return run_until_stopped(serve)


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} should be numbers from 1 to 999999, separated by commas")
    return [int(part) for part in text.split(",")]
