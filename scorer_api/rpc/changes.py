"""What clients that watch are told: the changes between two looks at the pods, which all watches share.

A client that is slow takes no memory: it is told of looks that are kept anyway. One that is behind the oldest of them is told so, and then all anew.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from indexer.http.problems import Problem
from indexer.http.turns import Turns
from indexer.streams.pool import PodStatus
from scorer_api.client.changes import Change, Watch
from scorer_api.rpc.metrics import RpcMetrics
from scorer_api.rpc.protobuf import bytes_field
from scorer_api.rpc.schema import SCHEMA
from scorer_api.rpc.writing import encode

log = logging.getLogger(__name__)

LOOKS_MAX = 16
# Changes in one message, each of about 60 bytes.
MESSAGE_CHANGES_MAX = 256
RETRY_AFTER_S = 1
_NUMBERS = {field.kind: field.number for field in SCHEMA.messages["Change"]}
_MISSED, _UP_TO_DATE = (bytes_field(1, bytes_field(_NUMBERS[name], b"")) for name in ("Missed", "UpToDate"))


class _Told(Struct, frozen=True):
    """A change: the model that it is about, and the field of a message that tells it."""

    model: str
    field: bytes


class _Look(Struct, frozen=True):
    """`changes`: since the look before."""

    number: int
    changes: Sequence[_Told]


class Changes:
    """Looks at the pods every `interval_s` while anybody watches. `look`: the pods as they are, one by one."""

    def __init__(self, look: Callable[[], Iterable[PodStatus]], interval_s: float, watches_max: int, metrics: RpcMetrics) -> None:
        self._look = look
        self._interval_s = interval_s
        self._watches_max = watches_max
        self._metrics = metrics
        self._looks: deque[_Look] = deque(maxlen=LOOKS_MAX)
        self._pods: Sequence[PodStatus] = ()
        self._next = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._watches = 0
        self._is_ended = False

    async def watch(self, model: str | None) -> AsyncGenerator[bytes, None]:
        """Messages for one client, without end. `model`: of this one only. Raises Problem where there is no room, and where the service ends."""
        if self._watches >= self._watches_max:
            raise Problem(429, f"there are {self._watches_max} watches, which is the most (watches_max); try again", retry_after_s=RETRY_AFTER_S)
        self._watches += 1
        self._metrics.watches.inc()
        try:
            if self._looking is None:
                self._looking = asyncio.create_task(self._keep_looking(), name="looks for watches")
            told: int | None = None
            while not self._is_ended:
                news = self._next
                if told is not None and told < self._looks[0].number - 1:
                    told = None
                    self._metrics.missed.inc()
                    yield _MISSED
                if told is None and self._looks:
                    told = self._looks[-1].number
                    async for message in self._all(model):
                        yield message
                elif told is not None:
                    for look in [look for look in self._looks if look.number > told]:
                        for message in _messages(look.changes, model):
                            yield message
                        told = look.number
                await news.wait()
            raise Problem(503, "the service ends", retry_after_s=RETRY_AFTER_S)
        finally:
            self._watches -= 1
            self._metrics.watches.dec()
            if not self._watches:
                self._rest()

    def end(self) -> None:
        """Every watch ends. Idempotent."""
        self._is_ended = True
        self._announce()

    def _rest(self) -> None:
        """Nobody watches: what was seen says nothing of what will be seen by the next one who does."""
        if self._looking is not None:
            self._looking.cancel()
        self._looking = None
        self._looks.clear()
        self._pods = ()

    def _announce(self) -> None:
        before, self._next = self._next, asyncio.Event()
        before.set()

    async def _keep_looking(self) -> None:
        seen, number = Watch(None), 0
        while True:
            try:
                pods, turns = [], Turns()
                for pod in self._look():
                    pods.append(pod)
                    await turns.give()
                changes = await _told_in_turns(seen.seen(pods, time.monotonic()))
            except Exception:
                log.exception("look at the pods failed")
            else:
                number += 1
                self._pods = pods
                self._looks.append(_Look(number, changes))
                self._announce()
            await asyncio.sleep(self._interval_s)

    async def _all(self, model: str | None) -> AsyncIterator[bytes]:
        """All that there was at the last look."""
        for message in _messages(await _told_in_turns(Watch(model).seen(self._pods, time.monotonic())), model):
            yield message
        yield _UP_TO_DATE


async def _told_in_turns(changes: Iterable[Change]) -> list[_Told]:
    told, turns = [], Turns()
    for change in changes:
        told.append(_told(change))
        await turns.give()
    return told


def _told(change: Change) -> _Told:
    name = type(change).__name__
    return _Told(getattr(change, "model", ""), bytes_field(1, bytes_field(_NUMBERS[name], encode(name, change))))


def _messages(changes: Sequence[_Told], model: str | None) -> Iterator[bytes]:
    fields = [change.field for change in changes if model in (None, change.model)]
    for start in range(0, len(fields), MESSAGE_CHANGES_MAX):
        yield b"".join(fields[start : start + MESSAGE_CHANGES_MAX])
