"""Serving until a signal, with settings from flags, variables and a file that is read again."""

import argparse
import asyncio
import gc
import os
import signal
from collections.abc import Callable, Sequence

import msgspec

from indexer.config.reload import WatchedFiles
from indexer.config.settings import PREFIX, Settings, fields
from indexer.errors import SettingError
from indexer.http.server import Served, serve
from indexer.main import logs
from indexer.main.command import run
from indexer.main.config_file import Reconfiguration, read_file
from indexer.main.read_settings import read_settings
from indexer.tracing.environment import make_tracer
from indexer.workers.worker import Worker

NO_REDIS = "is required: a redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL; without Redis there is kv-indexer serve"


def settings_of(parsed: argparse.Namespace, engines: Sequence[str], config: str | None = None, *, allows_workers: bool = False) -> Settings:
    """Settings from flags, variables and the file; logging is configured by them. Raises SettingError."""
    flags = {field.name: getattr(parsed, field.name) for field in fields() if hasattr(parsed, field.name)}
    settings = read_settings(flags, engines, os.environ, read_file(config) if config else None)
    if settings.workers > 1 and not allows_workers:
        raise SettingError("--workers", settings.workers, "is for kv-indexer serve and api")
    logs.configure(settings.log_format, settings.log_level)
    return settings


def config_of(parsed: argparse.Namespace) -> str | None:
    """The path of the configuration file."""
    config: str | None = parsed.config or os.environ.get(PREFIX + "CONFIG")
    return config


def reads_again(settings: Settings, config: str | None) -> bool:
    """Whether SIGHUP has files read again. Otherwise it ends the process, as a terminal does that is closed."""
    return bool(config or settings.api_token_file or settings.admin_token_file or settings.tls_cert)


def serve_until_stopped(
    parsed: argparse.Namespace, make: Callable[[Settings], Served], *, needs_redis: bool = False, worker: Worker | None = None
) -> int:
    """Serve what `make` makes of the settings until SIGTERM or SIGINT. Returns the exit code. `worker`: this one, where processes share a socket."""
    config = config_of(parsed)

    def read() -> Settings:
        return settings_of(parsed, parsed.engine, config, allows_workers=worker is not None)

    async def until_stopped(stop: asyncio.Event) -> None:
        files = WatchedFiles(config) if config else None
        settings = read()
        if needs_redis and settings.redis is None:
            raise SettingError("--redis", None, NO_REDIS)

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
        if reads_again(settings, config):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_now.set)
        if worker is not None:
            worker.stop_with_parent(stop)
        await serve(settings, make_served, stop, reload_now=reload_now, worker=worker, tracer=make_tracer(os.environ))

    return run(until_stopped)
