"""`kv-indexer demo`: the service with two demo engines, processes of their own."""

import argparse
import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

import msgspec

from indexer.config.settings import Settings
from indexer.http.server import listen, serve
from indexer.main.command import run as run_until_stopped
from indexer.main.parser import add_settings
from indexer.main.serving import settings_of
from indexer.simulation.demo_engine import MODEL
from scorer_api.app import make_serve

# Each engine's chats; the first of each is its hot one.
CHATS = {"demo-0": range(1, 9), "demo-1": range(11, 19)}
STOP_TIMEOUT_S = 3.0
# Its prompts are nobody's secret, and the page has something to show.
HOT_PREFIXES = 1_000

WHAT_TO_TRY = """
Two demo engines serve chats that all begin with the tokens 1 to 64; demo-1 alone serves chat 11, which goes on with 11001, 11002, …
Try, in another terminal:

  curl -s {url}/v1/score -H 'Content-Type: application/json' \\
       -d "{{\\"model\\": \\"{model}\\", \\"token_ids\\": [$(seq -s, 1 64),$(seq -s, 11001 11065)]}}"
  (seq 1 64; seq 11001 11065) | {command} score --url {url} --model {model} --tokens-file -
  {command} score --url {url} --model {model} --prompt "$(seq -s' ' 64) $(seq -s' ' 11001 11065)"   # a number is the token of that number
  curl -s {url}/v1/pods
  curl -s {url}/v1/hot                       # which prefixes are asked for most
  curl -s {url}/metrics | grep ^kv_indexer

The engines, for a second service:{engines}

or look at {url}/ui and {url}/docs in a browser. Stop with Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_settings(parser)
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError."""
    return run_until_stopped(lambda stop: serve_demo(lambda engines: settings_of(parsed, engines), stop))


async def serve_demo(settings_with: Callable[[Sequence[str]], Settings], stop: asyncio.Event) -> None:
    """Start the engines, serve, and take everything down again. Raises SettingError."""
    listen(settings_with([])).close()  # what is wrong, or taken, stops the start before anything runs
    async with AsyncExitStack() as stack:
        specs = [await _start_engine(stack, pod, chats) for pod, chats in CHATS.items()]
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        listening.add_done_callback(partial(_print_what_to_try, specs))
        given = settings_with(specs)
        settings = msgspec.structs.replace(given, hot_prefixes=given.hot_prefixes or HOT_PREFIXES)
        await serve(settings, lambda: make_serve(settings), stop, listening)


async def _start_engine(stack: AsyncExitStack, pod: str, chats: range) -> str:
    """Returns the engine's spec."""
    words = ("-m", "scorer_api.cli", "demo-engine", "--pod", pod, "--model", MODEL, "--chats", ",".join(map(str, chats)), "--with-parent")
    # A separate session: Ctrl-C in the terminal goes to the service, which stops the engines when it has finished.
    engine = await asyncio.create_subprocess_exec(sys.executable, *words, stdin=PIPE, stdout=PIPE, start_new_session=True)
    stack.push_async_callback(_stop_engine, engine)
    assert engine.stdout is not None, "its standard output is a pipe"
    spec = (await engine.stdout.readline()).decode().strip()
    if not spec:
        raise RuntimeError(f"the demo engine {pod} did not start")
    return spec


async def _stop_engine(engine: Process) -> None:
    if engine.returncode is not None:
        return
    engine.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await engine.wait()
    except TimeoutError:
        engine.kill()
        await engine.wait()


def _print_what_to_try(specs: Sequence[str], listening: "asyncio.Future[str]") -> None:
    if not listening.cancelled():
        command = sys.argv[0] if sys.argv[0].endswith("kv-indexer") else f"{sys.executable} -m scorer_api.cli"
        engines = "".join(f"\n  --engine {spec}" for spec in specs)
        text = WHAT_TO_TRY.format(url=listening.result(), model=MODEL, command=command, engines=engines)
        print(text, flush=True)  # noqa: T201 - the command's output
