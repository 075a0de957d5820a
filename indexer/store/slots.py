"""What a store knows of each slot of a Cluster that it uses: a slot's node can be away while all others do their work.

A Redis that is no Cluster is one slot.
"""

import asyncio
from collections.abc import Iterable
from typing import Generic, TypeVar

from indexer.store.clock import NodeClock

W = TypeVar("W")
# So many streams may be written anew at a time.
WRITING_ALL_MAX = 2


class Slot(Generic[W]):
    """One slot. `name`: a key in it that may be set, if it is not there, to see whether its node takes writes. `due`: what waits to be written."""

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.name = name
        self.clock = NodeClock()
        self.trouble: str | None = None
        self.outage_ended_s = float("-inf")
        self.due: dict[object, W] = {}
        self.woken = asyncio.Event()
        self.writing_all = asyncio.Semaphore(WRITING_ALL_MAX)


def trouble_of(slots: Iterable[Slot[W]]) -> str | None:
    """What is wrong with one of them."""
    return next((slot.trouble for slot in slots if slot.trouble is not None), None)
