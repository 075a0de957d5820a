"""The kv-indexer command."""

import argparse
import asyncio
import re
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

import zmq

from indexer import __version__
from indexer.errors import SettingError
from indexer.main.command import add_ingest, run, run_command, serve_until_stopped, settings_of
from indexer.main.parser import Parser, add_config, add_settings
from indexer.simulation import demo_engine
from indexer.simulation.publisher import LOOPBACK
from scorer_api.app import make_api, make_serve
from scorer_api.cli import demo
from scorer_api.cli.numbers import port, positive

# Commands of a module each, in this package: it declares its arguments and says what carries it out.
COMMANDS = {
    "score": "ask a running service for the scores of a prompt",
    "route": "ask a running service which pod a prompt is to go to",
    "explain": "ask a running service why each pod's match of a prompt ends where it does",
    "doctor": "find out why scores are zero, or what else is wrong, and how to mend it",
    "pods": "ask a running service for its pods and their streams",
    "top": "a live view of a running service in the terminal",
    "record": "write what engines publish to files",
    "replay": "play such a file as the engines would; prints their specs",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where something failed, 2 where the user's words were wrong."""
    return run_command(make_parser(), arguments)


def make_parser() -> argparse.ArgumentParser:
    """The parser of `kv-indexer` with all its commands."""
    parser = Parser(prog="kv-indexer", description="Tells any LLM router which pod already holds the longest prefix of a prompt.")
    parser.add_argument("--version", action="version", version=f"kv-indexer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serving = commands.add_parser("serve", help="follow engines and answer scores over HTTP", allow_abbrev=False)
    add_config(serving)
    serving.set_defaults(command=lambda parsed: serve_until_stopped(parsed, make_serve))

    add_ingest(commands.add_parser("ingest", help="follow engines, alone or with others, and write what they cache to Redis", allow_abbrev=False))

    answering = commands.add_parser("api", help="answer scores over HTTP from what indexers write to Redis", allow_abbrev=False)
    add_config(answering, with_engines=False)
    answering.set_defaults(command=lambda parsed: serve_until_stopped(parsed, make_api, needs_redis=True))

    for name, told in COMMANDS.items():
        commands.add_parser(name, help=told, allow_abbrev=False, declare=partial(_declare, name))

    demonstrating = commands.add_parser("demo", help="serve two demo engines, so that there is something to see", allow_abbrev=False)
    add_settings(demonstrating)
    demonstrating.set_defaults(command=_demo)

    engine = commands.add_parser("demo-engine", help="an engine without a model that speaks the wire protocol; prints its spec", allow_abbrev=False)
    engine.add_argument("--pod", default="demo-0", help="the name of the pod in its topic and spec")
    engine.add_argument("--model", default=demo.MODEL, help="the name of the model in its topic and spec")
    engine.add_argument("--chats", default="1,2,3,4,5,6,7,8", metavar="N,N,…", type=_numbers, help="numbers of the chats that it serves")
    engine.add_argument("--blocks", default=128, type=positive(int), help="how many blocks it caches")
    engine.add_argument("--host", default=LOOPBACK, help="address that it listens on; 0.0.0.0 for every one of this machine's")
    engine.add_argument("--events-port", default=0, type=port, help="default: a free one")
    engine.add_argument("--replay-port", default=0, type=port, help="default: a free one")
    engine.add_argument("--http-port", default=0, type=port, help="where it tokenizes prompts; default: a free one")
    engine.add_argument("--with-parent", action="store_true", help="stop when standard input ends, as it does when the parent dies")
    engine.add_argument("--requests-per-s", default=4.0, type=positive(float), help="how many chat turns it serves a second")
    engine.set_defaults(command=_demo_engine)
    return parser


def _declare(name: str, parser: argparse.ArgumentParser) -> None:
    """Importing all of them would take every command, and every service, a fifth of a second."""
    import_module(f"scorer_api.cli.{name}").add_arguments(parser)


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} should be numbers from 1 to 999999, separated by commas")
    return [int(part) for part in text.split(",")]


def _demo(parsed: argparse.Namespace) -> int:
    return run(lambda stop: demo.run(lambda engines: settings_of(parsed, engines), stop))


def _demo_engine(parsed: argparse.Namespace) -> int:
    async def until_stopped(stop: asyncio.Event) -> None:
        if parsed.with_parent:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
        address = parsed.host, parsed.events_port, parsed.replay_port, parsed.http_port
        serving = demo_engine.run(parsed.pod, parsed.model, parsed.chats, parsed.blocks, parsed.requests_per_s, *address)
        engine = asyncio.create_task(serving, name="demo engine")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait([engine, stopping], return_when=asyncio.FIRST_COMPLETED)
        engine.cancel()
        stopping.cancel()
        for outcome in await asyncio.gather(engine, stopping, return_exceptions=True):
            if isinstance(outcome, zmq.ZMQError | OSError):
                raise SettingError("--host, --events-port, --replay-port and --http-port", address, f"cannot listen there: {outcome.strerror}")
            if isinstance(outcome, Exception):
                raise outcome

    return run(until_stopped)
