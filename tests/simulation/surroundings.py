"""What the product finds in place of clocks, random numbers, sockets and Redis while a simulation runs."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, Self

from indexer.ownership import replica
from indexer.store import reader, session
from indexer.streams import applier, pool, recovery, stream
from indexer.streams.progress import StreamProgress
from scorer_api.following import follower, survey
from tests.simulation.engine_network import EngineNetwork, SimulatedReplay, SimulatedSubscriber
from tests.simulation.virtual_loop import VirtualLoop

UNIX_TIME_S = 1_700_000_000.0
# Leases are as short as this, so that a second is long: what has an interval of its own keeps up with them.
INTERVAL_S = 0.2
# Messages are on their way for a few milliseconds.
OVERTAKEN_S = 0.03


# How long a batch that is applied in steps rests between two of them: mostly so short that it is done before an answer of Redis comes.
RESTS_S = (0.0, 0.0, 0.0, 0.001, 0.01)


class NoServedNames:
    """Engines here have no HTTP API."""

    def __init__(self, *words: Any) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *words: object) -> None:
        pass

    def of(self, model: str, pod: str) -> tuple[str, ...]:
        return ()


@contextmanager
def no_log() -> Iterator[None]:
    """Nobody reads it, unless it is shown. Switched off once for many schedules: each time all loggers are gone through."""
    was_disabled = logging.root.manager.disable
    if was_disabled >= logging.CRITICAL or logging.root.isEnabledFor(logging.DEBUG):
        yield
        return
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(was_disabled)


@contextmanager
def surroundings(
    loop: VirtualLoop, random: Random, network: EngineNetwork, connect: Callable[[str, float], Any], *, in_steps: bool
) -> Iterator[None]:
    """`connect`: makes the client of Redis for the process that runs. `in_steps`: every batch is applied in steps, with rests in between."""

    async def finish_batch(self: StreamProgress, turn: asyncio.Lock) -> None:
        while self.is_amid_batch:
            await asyncio.sleep(random.choice(RESTS_S))
            async with turn:
                self.go_on(0.0)

    def one_step(self: StreamProgress, until_s: float) -> bool:
        return go_on(self, -math.inf)

    go_on = StreamProgress.go_on
    replaced: list[tuple[Any, str, Any]] = [
        (time, "monotonic", loop.time),
        (time, "time", lambda: UNIX_TIME_S + loop.time()),
        (secrets, "randbits", random.getrandbits),
        (secrets, "token_hex", lambda size: f"{random.getrandbits(8 * size):0{2 * size}x}"),
        (pool, "check_endpoints", lambda spec: None),  # it has the system look at each address
        (pool, "Subscriber", partial(SimulatedSubscriber, network)),
        (recovery, "ReplayRequest", partial(SimulatedReplay, network)),
        (replica, "ServedNames", NoServedNames),
        (replica, "platform", SimpleNamespace(node=lambda: "node")),
        (replica, "os", SimpleNamespace(getpid=lambda: 1)),
        (session, "connect", connect),
        (reader, "connect", connect),
        (survey, "SURVEY_S", INTERVAL_S),
        (follower, "LOOK_S", INTERVAL_S),
        (stream, "OVERTAKEN_S", OVERTAKEN_S),
    ]
    if in_steps:
        replaced += [(applier, "STEP_BYTES_MAX", 0), (StreamProgress, "go_on", one_step), (StreamProgress, "finish_batch", finish_batch)]
    former = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        with no_log():
            yield
    finally:
        for owner, name, value in former:
            setattr(owner, name, value)
