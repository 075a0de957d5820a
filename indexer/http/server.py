"""Serves an app over HTTP, with everything that it needs, until a signal stops it."""

import asyncio
import contextlib
import errno
import gc
import logging
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import Any, Protocol, TypeAlias

import uvicorn
from msgspec import Struct

from indexer import compiled
from indexer.config.reload import Reloadable, keep_reloading
from indexer.config.settings import Settings
from indexer.errors import SettingError
from indexer.http.acceptor import Acceptor
from indexer.http.at_once import AtOnce
from indexer.http.connection import Connection, ConnectionGroup
from indexer.http.tls import Certificate
from indexer.http.traced import Traced
from indexer.tracing.current import Tracer, use
from indexer.workers.worker import Worker

log = logging.getLogger(__name__)

BACKLOG = 2048
# Longer than clients keep idle connections, most of them 5 to 60 seconds, so that they are the ones to close them.
KEEP_ALIVE_S = 75
# When it stops: so long connections that wait in the backlog are accepted, and so long an idle one may still send a request.
ACCEPT_S = 0.02
DRAIN_S = 0.5
Part: TypeAlias = AbstractAsyncContextManager[Any]


class Reconfigurable(Protocol):
    """A service whose engines can change while it runs. `reconfigure` returns the settings that are in force afterwards."""

    async def reconfigure(self, before: Settings, after: Settings) -> Settings: ...


class Served(Struct, frozen=True):
    """An ASGI app and what it needs.

    `parts`: what runs while it is served, in the order of the start. `reloadables`: what is read again when its files change. `service`: what
    follows engines, if anything does. `on_stop`: called once it is to stop, while everything still runs. `is_ready`: whether all that there was at
    the start is loaded. `at_once`: answers to plain requests that need no app, where there are any.
    """

    app: Any
    parts: Sequence[Part]
    reloadables: Sequence[Reloadable]
    service: Reconfigurable | None = None
    on_stop: Sequence[Callable[[], None]] = ()
    is_ready: Callable[[], bool] = lambda: True
    at_once: AtOnce | None = None


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: only the command line owns signals."""

    def __init__(self, config: uvicorn.Config, connections: ConnectionGroup, worker: Worker | None) -> None:
        super().__init__(config)
        self._connections = connections
        self._worker = worker

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._worker is None or sockets is None:
            await super().startup(sockets)
            return
        await super().startup([])
        make: Any = self.config.http_protocol_class
        make_protocol = partial(make, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        self.servers += [Acceptor(each, self._worker, make_protocol, self.config.ssl) for each in sockets]  # type: ignore[misc]  # what it uses of one

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what has arrived, that which was not accepted yet included, and close each connection behind its last response."""
        self._connections.is_stopping = True
        await asyncio.sleep(ACCEPT_S)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def listen(settings: Settings) -> socket.socket:
    """A listening socket. Raises SettingError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        hint = "; give another --port" if error.errno == errno.EADDRINUSE else ""
        raise SettingError("--host and --port", f"{settings.host}:{settings.port}", f"cannot listen there: {error.strerror or error}{hint}") from None
    listener.setblocking(False)
    return listener


async def serve(
    settings: Settings,
    make: Callable[[], Served],
    stop: asyncio.Event,
    listening: "asyncio.Future[str] | None" = None,
    reload_now: asyncio.Event | None = None,
    worker: Worker | None = None,
    tracer: Tracer | None = None,
) -> None:
    """Serve what `make` makes until `stop` is set, then let running requests finish.

    `listening` gets the service's URL. Setting `reload_now` has all files read again at once. `worker`: this one, where processes share a socket.
    `tracer`: where traces are wanted; it is shut down at the end.

    Raises SettingError before it serves anything.
    """
    with contextlib.closing(listen(settings) if worker is None else worker.group.listener) as listener:
        certificate = Certificate.of(settings)
        async with AsyncExitStack() as stack:
            if tracer is not None:
                use(tracer)
                stack.push_async_callback(_stop_tracing, tracer)
            served = make()
            if worker is not None:
                # From here on no step takes long, until all parts have ended.
                await stack.enter_async_context(worker.beating())
            app = served.app if tracer is None else Traced(served.app, tracer)
            for part in served.parts:
                await stack.enter_async_context(part)
            gc.freeze()  # full collections need not look through what stays, and there may be thousands of streams
            if worker is not None and not await _may_accept(stack, worker, served, stop):
                return
            note_change = None if worker is None else worker.note_connections
            at_once = served.at_once if tracer is None else None  # spans are made around the app
            connections = ConnectionGroup(settings.limits.http, min(DRAIN_S, settings.shutdown_s / 2), note_change, at_once)
            server = _Server(_config(app, settings, certificate, connections), connections, worker)
            serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
            host, port = listener.getsockname()[:2]
            url = f"http{'' if certificate is None else 's'}://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("listening", extra={"url": url, "engines": len(settings.engines)})
            if compiled.core is None:
                log.info("compiled core is not in use", extra={"reason": compiled.WHY_NOT})
            if listening is not None:
                listening.set_result(url)
            reloadables = [*served.reloadables, *([] if certificate is None else [certificate])]
            reloading = asyncio.create_task(keep_reloading(reloadables, reload_now or asyncio.Event()), name="reload")
            stopping = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
            for begin_to_stop in served.on_stop:
                begin_to_stop()
            await _cancel(stopping, reloading)
            server.should_exit = True
            await serving
    log.info("stopped")


async def _stop_tracing(tracer: Tracer) -> None:
    """What is left is sent meanwhile."""
    use(None)
    await asyncio.to_thread(tracer.shutdown)


async def _may_accept(stack: AsyncExitStack, worker: Worker, served: Served, stop: asyncio.Event) -> bool:
    """Tell the others how far this worker is, as long as it serves. False if it is to stop before it has accepted anything.

    One that takes the place of another waits until it is ready: requests go to those that are.
    """
    await stack.enter_async_context(worker)
    worker.note_starting()
    noting = asyncio.create_task(worker.note_ready(served.is_ready), name="note ready")
    stack.push_async_callback(_cancel, noting)
    if worker.is_restarted:
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait([noting, stopping], return_when=asyncio.FIRST_COMPLETED)
        await _cancel(stopping)
    return not stop.is_set()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            log.error("task failed", exc_info=outcome)


def _config(app: Any, settings: Settings, certificate: Certificate | None, connections: ConnectionGroup) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=Connection.of(connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(settings.shutdown_s)),
    )
    config.load()
    config.ssl = None if certificate is None else certificate.context
    return config
