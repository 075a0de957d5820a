"""What a scorer reads from Redis. Every call raises StoreError where Redis does not answer, or refuses."""

import logging
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec
from msgspec import Struct
from prometheus_client import Gauge
from redis.exceptions import RedisError

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.engines.load import Load
from indexer.engines.spec import EngineSpec
from indexer.errors import StoreError
from indexer.store import published_loads
from indexer.store.client.connection import Client, answer_of, connect, is_cluster, node_of, server_epoch_of, slot_of, why
from indexer.store.health import Failure, RedisHealth
from indexer.store.keyspace import Keyspace, ModelKeys, Shard, shards_of, stream_id, text_of
from indexer.store.log_reads import Entries, LogReads, entries_of
from indexer.store.records import Head, decode_head
from indexer.store.registry import RegisteredPods
from indexer.store.scripts import Call, call_all, pairs

log = logging.getLogger(__name__)

T = TypeVar("T")

# Number of states that one script reads: some hundred microseconds of Redis.
SURVEY_STATES = 200
# It is asked several times a second.
SILENT_S = 3.0

LogOffset = tuple[int, int]
"""A position in a log: milliseconds of Redis's clock, and a count within them."""
LOG_START: LogOffset = (0, 0)


class StateVersion(Struct, frozen=True):
    """Which of a stream's states one is: its `number`-th change in this generation, made by the owner with this fence."""

    generation: int
    fence: int
    number: int


class StateSnapshot(Struct, frozen=True):
    """A stream's state at one log offset. `version` is None where there is no state, `head` also where it cannot be read."""

    offset: LogOffset
    version: StateVersion | None = None
    head: Head | None = None


class SurveyedState(Struct, frozen=True):
    """A stream's state as a survey sees it. `version` is None where there is none. `status`: what the stream's owner says of it, in JSON."""

    version: StateVersion | None
    status: bytes | None


class Survey(Struct, frozen=True):
    """The states of streams at one log offset. `trusted`: name of a stream → until when, in milliseconds. `node`: the one
    of a Cluster whose clock this goes by."""

    now_ms: int
    offset: LogOffset
    incarnation: bytes | None
    trusted: dict[str, int]
    states: dict[str, SurveyedState]
    node: str = ""


class Directory(Struct, frozen=True):
    """What belongs to no model. `models`: those worth looking at. `shards`: into how many each is split, None where there is none."""

    pods: dict[str, tuple[EngineSpec, ...]]
    models: frozenset[str]
    shards: int | None = None


class Reader:
    """`up`, where this is all that its process wants of Redis, is the gauge that says whether it answers."""

    def __init__(self, settings: Settings, up: Gauge | None = None) -> None:
        assert settings.redis is not None, "a shared store is somewhere"
        self._url = settings.redis
        self._log_reads = LogReads(self._read_logs)
        self.client: Client = connect(settings.redis, settings.redis_timeout_s)
        self.keyspace = Keyspace(settings.namespace, settings.shards)
        self.health = RedisHealth(settings.redis, up, writes=False)
        self._pods = RegisteredPods()
        self._unreadable: set[StreamKey] = set()
        """Streams whose state could not be read: each is logged once."""

    @property
    def failure(self) -> Failure | None:
        """What is wrong with Redis. If it does not answer at all it is away, however long we may wait for its answer."""
        return self.health.silence(SILENT_S) or self.health.failure

    @property
    def directory_failure(self) -> Failure | None:
        """The same of what belongs to no model."""
        return self.health.silence(SILENT_S) or self.health.failure_in(slot_of(self.client, self.keyspace.directory.pods))

    def slot_of(self, shard: Shard) -> int:
        """The slot in which all of a shard lies."""
        return slot_of(self.client, self._keys(shard).log)

    def _keys(self, shard: Shard) -> ModelKeys:
        return self.keyspace.model(shard.model, shard.number)

    def forget(self, shard: Shard, others: Iterable[Shard]) -> None:
        """This shard is no longer followed, but these others are."""
        asked = {slot_of(self.client, self.keyspace.directory.pods), *map(self.slot_of, others)}
        if self.slot_of(shard) not in asked:
            self.health.forget(self.slot_of(shard))

    @property
    def server_epoch(self) -> int:
        """Counts how often Redis became another server. What was asked for and answered in one epoch is of one server."""
        return server_epoch_of(self.client)

    async def aclose(self) -> None:
        await self._log_reads.aclose()
        await self.client.aclose()

    async def _ask(self, asking: Awaitable[T], key: str) -> T:
        """Raises StoreError."""
        slot = slot_of(self.client, key)
        try:
            answer = await answer_of(asking)
        except RedisError as error:
            self.health.note_error(error, slot)
            raise StoreError(why(error)) from error
        self.health.note_answer(slot)
        return answer

    async def _call(self, calls: Sequence[Call]) -> list[Any]:
        async def answers() -> list[Any]:
            found = await call_all(self.client, calls)
            for answer in found:
                if isinstance(answer, RedisError):
                    raise answer
            return found

        return await self._ask(answers(), calls[0].keys[0])

    async def directory(self) -> Directory:
        """Registered pods, and the models that have indexers."""
        names = self.keyspace.directory
        pipeline = self.client.pipeline(transaction=False)
        pipeline.time()
        pipeline.hgetall(names.pods)
        pipeline.hgetall(names.specs)
        pipeline.zrange(names.models, 0, -1, withscores=True)
        pipeline.get(names.shards)
        (seconds, microseconds), pods, specs, models, shards = await self._ask(pipeline.execute(), names.pods)
        now_ms = seconds * 1000 + microseconds // 1000
        living = frozenset(text_of(model) for model, until_ms in models if until_ms >= now_ms)
        return Directory(self._pods.read(pods.items(), specs.items()), living, shards_of(shards) if living else None)

    async def snapshot(self, stream: StreamKey) -> StateSnapshot:
        """One stream's state."""
        keys = self.keyspace.of(stream)
        ((offset, *version, head),) = await self._call([Call("peek", [keys.state(stream), keys.log])])
        found = _version_of(version)
        try:
            return StateSnapshot(offset_of(offset), found, None if found is None else decode_head(head))
        except msgspec.MsgspecError:
            if stream not in self._unreadable:
                log.error("state in redis not readable", extra={"model": stream.model, "pod": stream.pod, "rank": stream.rank})
            self._unreadable.add(stream)
            return StateSnapshot(offset_of(offset), found)

    async def survey(self, shard: Shard, streams: Sequence[StreamKey]) -> list[Survey]:
        """Until when each stream of a shard is trusted, and these streams' states; several surveys where there are many of them."""
        keys = self._keys(shard)
        pieces = [streams[start : start + SURVEY_STATES] for start in range(0, len(streams), SURVEY_STATES)] or [[]]
        found = []
        for piece in pieces:
            call = Call("survey", [keys.streams, keys.log, keys.incarnation, *map(keys.state, piece)])
            ((now_ms, offset, incarnation, trusted, *states),) = await self._call([call])
            until = {text_of(name): int(float(until_ms)) for name, until_ms in pairs(trusted)}
            seen = {stream_id(stream): SurveyedState(_version_of(state[:3]), state[3]) for stream, state in zip(piece, states, strict=True)}
            found.append(Survey(int(now_ms), offset_of(offset), incarnation, until, seen, node_of(self.client, keys.log)))
        return found

    async def entries(self, shard: Shard, after: LogOffset, count: int, wait_ms: int) -> list[tuple[LogOffset, bytes | None]]:
        """At most `count` entries of the shard's log; waits up to `wait_ms` for the first, 0 for not at all. None: an entry of an unknown format."""
        name, begin = self._keys(shard).log, f"{after[0]}-{after[1]}"
        if is_cluster(self._url):
            entries = (await self._read_logs({name: begin}, count, wait_ms or None)).get(name, [])
        else:
            entries = await self._log_reads.entries(name, begin, count, wait_ms)
        return [(offset_of(identifier), (fields or {}).get(b"e")) for identifier, fields in entries]

    async def _read_logs(self, logs: Mapping[str, str], count: int, wait_ms: int | None) -> dict[str, Entries]:
        return entries_of(await self._ask(self.client.xread(dict[Any, Any](logs), count=count, block=wait_ms), next(iter(logs))))

    async def loads(self, model: str, pods: Sequence[str]) -> tuple[int, dict[str, tuple[Load, int]]]:
        """Of pods of one shard: Redis's time, and pod → its load, and when it was measured by that clock, in ms; pods without a load are left out."""
        asked = published_loads.calls(self.keyspace, model, pods)
        return published_loads.decode(pods, await self._call(asked)) if asked else (0, {})

    async def blocks(self, name: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
        """A piece of a hash, and where to go on; 0 is the beginning, and the end."""
        cursor, fields = await self._ask(self.client.hscan(name, cursor, count=count), name)
        return cursor, cast(dict[bytes, bytes], fields)


def offset_of(identifier: bytes) -> LogOffset:
    """From a log's identifier of an entry."""
    ms, _, count = identifier.partition(b"-")
    return int(ms), int(count)


def _version_of(words: Iterable[bytes | None]) -> StateVersion | None:
    try:
        generation, fence, number = (int(word or b"") for word in words)
    except ValueError:
        return None
    return StateVersion(generation, fence, number)
