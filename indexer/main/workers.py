"""Serving with several processes that share one port."""

import argparse
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial

from indexer.config.settings import Settings
from indexer.errors import SettingError
from indexer.http.server import Served, listen
from indexer.main import logs
from indexer.main.own_redis import OwnRedis
from indexer.main.serving import NO_REDIS, config_of, reads_again, serve_until_stopped, settings_of
from indexer.main.supervisor import Supervisor
from indexer.workers.worker import Worker, WorkerGroup


def serve_with_workers(parsed: argparse.Namespace, make: Callable[[Settings, Worker | None], Served], *, follows_engines: bool = False) -> int:
    """Serve what `make` makes in as many processes as the settings say, until SIGTERM or SIGINT. Returns the exit code.

    Several share what they know in Redis. `follows_engines`: whether they follow engines too; where no Redis is named, these have one of their own.
    """
    config = config_of(parsed)
    settings = settings_of(parsed, parsed.engine, config, allows_workers=True)
    if settings.redis is None and not settings.cells and not follows_engines:
        raise SettingError("--redis", None, NO_REDIS)
    if settings.workers == 1:
        return serve_until_stopped(parsed, lambda settings: make(settings, None))
    _check_gateway_port(settings)
    if follows_engines and settings.listen is not None:
        raise SettingError("--listen", settings.listen, "does not go with --workers: one process has the port at which engines dial in")
    with ExitStack() as stack:
        check: Callable[[], object] = _nothing
        if settings.redis is None and follows_engines and not settings.cells:
            redis = stack.enter_context(OwnRedis(settings.workers))
            parsed.redis, check = redis.url, redis.check  # as the flag would say it
        listener = stack.enter_context(closing(listen(settings)))
        group = WorkerGroup(settings.workers, listener)
        passes_on = (signal.SIGHUP,) if reads_again(settings, config) else ()
        return Supervisor(group, partial(_work, parsed, make), passes_on, check).run()


def _nothing() -> None:
    """There is no process to look after but the workers."""


def _work(parsed: argparse.Namespace, make: Callable[[Settings, Worker | None], Served], worker: Worker) -> int:
    logs.name_worker(worker.number)
    return serve_until_stopped(parsed, lambda settings: make(settings, worker), worker=worker)


def _check_gateway_port(settings: Settings) -> None:
    """Workers share the gateways' port by SO_REUSEPORT, so none of them would notice that another service has it. Raises SettingError."""
    if settings.gateway_listen is None:
        return
    host, _, port = settings.gateway_listen.rpartition(":")
    if port == "0":
        raise SettingError("--gateway-listen", settings.gateway_listen, "needs a port that all workers can share, not 0")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            raise SettingError("--gateway-listen", settings.gateway_listen, "cannot listen there") from None
