"""Running a command, and serving until a signal; and `python -m indexer`, which is `kv-indexer ingest`."""

import argparse
import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from indexer import __version__
from indexer.config.reload import WatchedFiles
from indexer.config.settings import PREFIX, Settings, fields
from indexer.errors import SettingError
from indexer.http.server import Served, serve
from indexer.main import logs
from indexer.main.allocation import give_large_blocks_back, share_one_arena
from indexer.main.app import make_ingest
from indexer.main.config_file import Reconfiguration, read_file
from indexer.main.event_loop import EventLoop
from indexer.main.parser import USAGE_ERROR, Parser, add_config
from indexer.main.read_settings import read_settings

# How long the receiving thread waits at most for the interpreter.
SWITCH_INTERVAL_S = 0.001
# Connections and engines need open files; many systems allow 1,024 unless a process raises its limit. It is raised to this at most.
OPEN_FILES_MAX = 65_536


def settings_of(parsed: argparse.Namespace, engines: Sequence[str], config: str | None = None) -> Settings:
    """Settings from flags, variables and the file; logging is configured by them. Raises SettingError."""
    flags = {field.name: getattr(parsed, field.name) for field in fields() if hasattr(parsed, field.name)}
    settings = read_settings(flags, engines, os.environ, read_file(config) if config else None)
    logs.configure(settings.log_format, settings.log_level)
    return settings


def serve_until_stopped(parsed: argparse.Namespace, make: Callable[[Settings], Served], *, needs_redis: bool = False) -> int:
    """Serve what `make` makes of the settings until SIGTERM or SIGINT. Returns the exit code."""
    config = parsed.config or os.environ.get(PREFIX + "CONFIG")

    def read() -> Settings:
        return settings_of(parsed, parsed.engine, config)

    async def until_stopped(stop: asyncio.Event) -> None:
        files = WatchedFiles(config) if config else None
        settings = read()
        if needs_redis and settings.redis is None:
            raise SettingError(
                "--redis",
                None,
                "is required: a redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL; without Redis there is kv-indexer serve",
            )

        def make_served() -> Served:
            served = make(settings)
            # Modules stay. Looking through them at each full collection would take the event loop a twentieth of a second.
            gc.collect()
            gc.freeze()
            if files is None or served.service is None:
                return served
            reconfiguration = Reconfiguration(files, read, settings, served.service)
            return msgspec.structs.replace(served, reloadables=[*served.reloadables, reconfiguration])

        reload_now = asyncio.Event()
        if config or settings.api_token_file or settings.admin_token_file or settings.tls_cert:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_now.set)
        await serve(settings, make_served, stop, reload_now=reload_now)

    return run(until_stopped)


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


def add_ingest(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ingest`."""
    add_config(parser)
    parser.set_defaults(command=lambda parsed: serve_until_stopped(parsed, make_ingest, needs_redis=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m indexer`."""
    parser = Parser(prog="python -m indexer", description="Follow engines and write what they cache to Redis, as kv-indexer ingest does.")
    parser.add_argument("--version", action="version", version=f"kv-indexer {__version__}")
    add_ingest(parser)
    return run_command(parser, arguments)
