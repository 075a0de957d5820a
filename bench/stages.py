"""From publishing a block to an answer that shows it, stage by stage: one client asks all the time, and publishes.

    publish ─▶ received    the system, and the receiving thread until it has put the message into the inbox
            ─▶ applied     the event loop until the index has the block: requests that are in hand, waking the stream's task, decoding
            ─▶ answered    what is left of the question in hand, and the one that sees the block

The service runs in a process of its own, where two of its methods note the time. All processes read one monotonic clock.
"""

import asyncio
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from statistics import median
from typing import Any

from msgspec import Struct

from bench.child import Child
from bench.connection import Connection
from bench.publisher import Socket, spec
from bench.visibility import VISIBLE, Probe, probe
from indexer.config.settings import Settings
from indexer.http.server import serve
from indexer.main import command
from indexer.main.read_settings import read_settings
from indexer.receiving.inbox import Inbox
from scorer_api.app import make_serve
from scorer_api.index.view import View

PROBES = 600
TIMEOUT_S = 30.0
APART_S = 0.002


class Stages(Struct, frozen=True):
    """Milliseconds."""

    stage: str
    p50_ms: float
    p99_ms: float


def measure() -> list[Stages]:
    with Child("prober", _probe_when_told) as prober, Child("service", _serve, spec("pod", prober.connection.recv())) as service:
        prober.connection.send(service.connection.recv())
        published, answered = prober.connection.recv()
        service.connection.send(None)
        received, applied = service.connection.recv()
    moments = list(zip(published, received[-PROBES:], applied[-PROBES:], answered, strict=True))
    stages = {
        "publish to received": [at[1] - at[0] for at in moments],
        "received to applied": [at[2] - at[1] for at in moments],
        "applied to answered": [at[3] - at[2] for at in moments],
        "publish to answered": [at[3] - at[0] for at in moments],
    }
    return [_row(stage, sorted(found)) for stage, found in stages.items()]


def _row(stage: str, found_s: list[float]) -> Stages:
    return Stages(stage, round(median(found_s) * 1000, 3), round(found_s[len(found_s) * 99 // 100] * 1000, 3))


def _probe_when_told(pipe: Pipe) -> None:
    probes = [probe(number) for number in range(PROBES)]
    socket = Socket()
    pipe.send(socket.port)
    with Connection(*pipe.recv()) as connection:
        socket.wait_subscribed()
        pipe.send(tuple(zip(*(_run(socket, connection, each) for each in probes), strict=True)))
    socket.close()


def _run(socket: Socket, connection: Connection, each: Probe) -> tuple[float, float]:
    """When it was published, and when an answer showed it."""
    until_s = time.monotonic() + APART_S
    while time.monotonic() < until_s:
        connection.ask(each.request)
    published_s = time.monotonic()
    socket.publish(each.payload)
    while VISIBLE not in connection.ask(each.request):
        if time.monotonic() - published_s > TIMEOUT_S:
            raise TimeoutError("a published block never showed in a score")
    return published_s, time.monotonic()


def _serve(pipe: Pipe, engine: str) -> None:
    received: list[float] = []
    applied: list[float] = []
    put_all, append = Inbox.put_all, View.append

    def noting_put(inbox: Inbox, messages: list[list[bytes]]) -> None:
        put_all(inbox, messages)
        received.append(time.monotonic())

    def noting_append(view: View, *arguments: Any, **named: Any) -> None:
        append(view, *arguments, **named)
        applied.append(time.monotonic())

    Inbox.put_all, View.append = noting_put, noting_append  # type: ignore[method-assign, assignment]  # in this process alone
    settings: Settings = read_settings({"port": "0"}, [engine], {}, {})

    async def run(stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        listening: asyncio.Future[str] = loop.create_future()
        listening.add_done_callback(lambda url: pipe.send(_address(url.result())))
        threading.Thread(target=_wait_for_end, args=(pipe, loop, stop), name="wait for the end", daemon=True).start()
        await serve(settings, lambda: make_serve(settings), stop, listening)

    command.run(run)
    pipe.send((received, applied))


def _wait_for_end(pipe: Pipe, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with suppress(EOFError):
        pipe.recv()
    loop.call_soon_threadsafe(stop.set)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)
