"""Serving with several processes that share one port."""

import argparse
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from functools import partial

from indexer.config.settings import Settings
from indexer.errors import SettingError
from indexer.http.server import Served, listen
from indexer.main import logs
from indexer.main.serving import NO_REDIS, config_of, reads_again, serve_until_stopped, settings_of
from indexer.main.supervisor import Supervisor
from indexer.workers.worker import Worker, WorkerGroup


def serve_with_workers(parsed: argparse.Namespace, make: Callable[[Settings, Worker | None], Served]) -> int:
    """Serve what `make` makes, from Redis, in as many processes as the settings say, until SIGTERM or SIGINT. Returns the exit code."""
    config = config_of(parsed)
    settings = settings_of(parsed, parsed.engine, config, allows_workers=True)
    if settings.redis is None and not settings.cells:
        raise SettingError("--redis", None, NO_REDIS)
    if settings.workers == 1:
        return serve_until_stopped(parsed, lambda settings: make(settings, None))
    _check_gateway_port(settings)
    with closing(listen(settings)) as listener:
        group = WorkerGroup(settings.workers, listener)
        passes_on = (signal.SIGHUP,) if reads_again(settings, config) else ()
        return Supervisor(group, partial(_work, parsed, make), passes_on).run()


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
