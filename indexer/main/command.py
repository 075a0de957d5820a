"""Running a command until it ends, or a signal stops it. What serves is in `serving`: no other command needs its libraries."""

import argparse
import asyncio
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from indexer.errors import SettingError
from indexer.main.allocation import give_large_blocks_back, share_one_arena
from indexer.main.event_loop import EventLoop
from indexer.main.parser import USAGE_ERROR

# How long the receiving thread waits at most for the interpreter: shorter than a request takes. Its wait begins anew whenever the event loop is idle
# for a moment, so beside one busy client a longer one lasts for tens of milliseconds.
SWITCH_INTERVAL_S = 0.0001
# Connections and engines need open files; many systems allow 1,024 unless a process raises its limit. It is raised to this at most.
OPEN_FILES_MAX = 65_536


def run(act: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run with a stop event that SIGTERM and SIGINT set. Returns the exit code."""

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
    give_large_blocks_back()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(with_signals())
    return 0


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Returns the exit code: 0, 1 for a failure, 2 for a mistake in the command line or in a file."""
    parsed = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = parsed.command
        return command(parsed)
    except SettingError as error:
        print(f"kv-indexer: {error}", file=sys.stderr)  # noqa: T201 - the one line that says why the start stops
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130
