"""How Redis is, as far as one client knows it, for each slot of a Cluster: the node of one slot may be away while the others answer.

A Redis that is no Cluster is one slot.
"""

import logging
import time
from typing import NamedTuple

from prometheus_client import Gauge
from redis.exceptions import RedisError

from indexer.masking import masked
from indexer.store.client.connection import said, why

log = logging.getLogger(__name__)

UNREACHABLE = "unreachable"
REFUSING = "refusing"


class Failure(NamedTuple):
    """What is wrong, one of the reasons of `why`, and since when, in Unix time."""

    reason: str
    since_s: float


class RedisHealth:
    """`up` is the gauge that says whether Redis is well. `writes`: whether the client writes: then an answer to a read or a renewal ends an outage
    only, and that Redis accepts writes again is known once it has accepted one."""

    def __init__(self, url: str, up: Gauge | None, *, writes: bool) -> None:
        self._url = url
        self._up = up
        self._writes = writes
        self._failures: dict[int, Failure] = {}
        self._outages_ended_s: dict[int, float] = {}
        self._server_changed_s = float("-inf")
        self._answered_s = time.monotonic()
        self._last_refusal: str | None = None

    @property
    def failure(self) -> Failure | None:
        """What has been wrong for the longest time, in any slot."""
        return min(self._failures.values(), key=lambda failure: failure.since_s, default=None)

    def failure_in(self, slot: int) -> Failure | None:
        return self._failures.get(slot)

    def failed_slots(self) -> frozenset[int]:
        return frozenset(self._failures)

    def silence(self, silent_s: float) -> Failure | None:
        """An outage without an error: no answer has come for `silent_s` seconds."""
        passed_s = time.monotonic() - self._answered_s
        return Failure(UNREACHABLE, time.time() - passed_s) if passed_s > silent_s and not self._failures else None

    def outage_ended_s(self, slot: int) -> float:
        """When the slot was last away, or may have lost data, by time.monotonic()."""
        return max(self._outages_ended_s.get(slot, float("-inf")), self._server_changed_s)

    def forget(self, slot: int) -> None:
        """This slot is no longer used."""
        self._failures.pop(slot, None)

    def note_error(self, error: RedisError, slot: int) -> None:
        """One line in the log for each change."""
        reason, before = why(error), self._failures.get(slot)
        is_new = all(reason != other.reason for other in self._failures.values())
        if reason == REFUSING:
            # Some calls may be refused while others are not: each refusal is logged once.
            is_new = is_new and str(error) != self._last_refusal
            self._last_refusal = str(error)
        if is_new:
            log.error("redis in trouble", extra={"trouble": reason, "url": masked(self._url), "error": said(error)})
        self._failures[slot] = Failure(reason, time.time() if before is None else before.since_s)
        if self._up is not None:
            self._up.set(0)

    def note_answer(self, slot: int, *, is_write: bool = False) -> None:
        """Redis answered. `is_write`: it accepted a write."""
        self._answered_s = time.monotonic()
        failure = self._failures.get(slot)
        if failure is not None:
            if self._writes and not is_write and failure.reason != UNREACHABLE:
                return
            del self._failures[slot]
            self._outages_ended_s[slot] = time.monotonic()
            # To a client that only reads the next call may be refused again, and again.
            if not self._failures and (self._writes or failure.reason != REFUSING):
                self._last_refusal = None
                log.info("redis well again", extra={"trouble": failure.reason})
        if self._up is not None and not self._failures:
            self._up.set(1)

    def note_data_loss(self, slot: int | None = None) -> None:
        """The slot, or all of Redis, may lack what it had a moment ago: as after an outage."""
        if slot is None:
            self._server_changed_s = time.monotonic()
        else:
            self._outages_ended_s[slot] = time.monotonic()
