"""What all parts of the store share: the client, the names of keys, the health of Redis, and the clock of each slot's node."""

import time
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from redis.exceptions import RedisError

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.errors import StoreError
from indexer.metrics import IndexerMetrics
from indexer.store.client.connection import Client, connect, node_of, server_epoch_of, slot_of, why
from indexer.store.health import RedisHealth
from indexer.store.keyspace import Keyspace, incarnation_beside
from indexer.store.node_clock import NodeClock
from indexer.store.scripts import call


class Slot(Struct, eq=False):
    """A slot of a Cluster that was used. `probe`: a key in it that may be set where there is none, to see whether its node accepts writes."""

    number: int
    probe: str
    clock: NodeClock


class StoreSession:
    """`member`: this indexer's name among all."""

    def __init__(self, settings: Settings, metrics: IndexerMetrics, member: str) -> None:
        assert settings.redis is not None, "a shared store is somewhere"
        self.settings = settings
        self.metrics = metrics.redis
        self.member = member
        self.keyspace = Keyspace(settings.namespace, settings.shards)
        self.client: Client = connect(settings.redis, settings.redis_timeout_s)
        self.health = RedisHealth(settings.redis, self.metrics.up, writes=True)
        self.slots: dict[int, Slot] = {}
        self._server_epoch = server_epoch_of(self.client)

    @property
    def lease_ms(self) -> int:
        return int(self.settings.lease_s * 1000)

    @property
    def expiry_ms(self) -> int:
        """How long a state outlives the last heartbeat."""
        return int(self.settings.pod_expiry_s * 1000)

    def slot(self, key: str) -> Slot:
        """The slot in which a key lies."""
        number = slot_of(self.client, key)
        slot = self.slots.get(number)
        if slot is None:
            slot = self.slots[number] = Slot(number, incarnation_beside(key), NodeClock())
        return slot

    def slot_of(self, stream: StreamKey) -> int:
        """The number of the slot in which all of a stream lies."""
        return self.slot(self.keyspace.of(stream).incarnation).number

    def note_error(self, error: RedisError, key: str) -> None:
        """A command for this key failed."""
        self.health.note_error(error, self.slot(key).number)

    def note_answer(self, key: str) -> None:
        """A command for this key was answered, be it a read or the renewal of what is there."""
        self.health.note_answer(self.slot(key).number)

    def note_server_epoch(self) -> int:
        """See whether another server is Redis now: it may lack what the former did not replicate in time. Returns the present epoch."""
        epoch = server_epoch_of(self.client)
        if epoch != self._server_epoch:
            self._server_epoch = epoch
            self.health.note_data_loss()
        return epoch

    async def call(self, script: str, keys: Sequence[str], *words: Any) -> Any:
        """The script's answer. Raises StoreError."""
        try:
            return await call(self.client, script, keys, *words)
        except RedisError as error:
            raise self.failed(error, keys[0]) from error

    def failed(self, error: RedisError, key: str) -> StoreError:
        """What to raise for it."""
        self.note_error(error, key)
        return StoreError(why(error))

    # Time

    def note_time(self, key: str, now_ms: bytes, epoch: int, asked_s: float | None = None) -> bool:
        """The clock of the node that holds this key showed this a moment ago, to who asked in this epoch. Returns whether it was set back before,
        as far as who asked then can tell."""
        if epoch != server_epoch_of(self.client):
            return False
        clock, node, shown_ms = self.slot(key).clock, node_of(self.client, key), int(now_ms)
        was_set_back = asked_s is not None and shown_ms < clock.at_ms(node, asked_s)
        clock.note(node, shown_ms, time.monotonic())
        return was_set_back

    async def learn_time(self, key: str) -> None:
        """Ask the node that holds this key for its time, unless that is known. Raises StoreError."""
        if not self.slot(key).clock.knows(node_of(self.client, key)):
            epoch = self.note_server_epoch()
            self.note_time(key, await self.call("read_clock", [key]), epoch)

    def trusted_until_ms(self, key: str, written_at_s: float | None = None) -> int:
        """Until when a stream is trusted that Redis had completely at this time, or now: by the clock of the node that has this key; 0 where that
        is not known yet."""
        at_ms = self.slot(key).clock.at_ms(node_of(self.client, key), time.monotonic() if written_at_s is None else written_at_s)
        return at_ms and at_ms + self.lease_ms
