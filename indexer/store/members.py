"""The indexers that share a Redis, as each of them announces itself."""

import logging
from collections.abc import Iterable

from msgspec import Struct
from redis.exceptions import RedisError

from indexer.engines.spec import EngineSpec
from indexer.errors import ShardsError
from indexer.store.client.connection import Client, answer_of, said
from indexer.store.keyspace import Keyspace, shards_of, text_of
from indexer.store.pending import random_number
from indexer.store.registry import RegisteredPods
from indexer.store.scripts import pairs
from indexer.store.session import StoreSession

log = logging.getLogger(__name__)


class Heartbeat(Struct, frozen=True):
    """The answer to a heartbeat: what an indexer has to know of the others, and which pods are registered."""

    incarnation: str
    members: tuple[str, ...]
    pods: dict[str, tuple[EngineSpec, ...]]
    forgotten: frozenset[str]


async def written_shards(client: Client, keyspace: Keyspace) -> int | None:
    """Into how many shards indexers split their models; None where there are none. Raises redis.exceptions.RedisError."""
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.zrange(keyspace.directory.models, 0, -1, withscores=True)
    pipeline.get(keyspace.directory.shards)
    (seconds, microseconds), models, shards = await answer_of(pipeline.execute())
    has_models = any(until_ms >= seconds * 1000 + microseconds // 1000 for _, until_ms in models)
    return shards_of(shards) if shards is not None or has_models else None


class Members:
    """This indexer among the others."""

    def __init__(self, session: StoreSession) -> None:
        self._session = session
        self._registered = RegisteredPods()

    async def heartbeat(self, models: Iterable[str], *, is_candidate: bool = True) -> Heartbeat:
        """Send the heartbeat with this indexer's models, and read the other members. `is_candidate`: whether it may own streams.

        Raises StoreError; ShardsError where others split their models otherwise, and then this indexer is no member.
        """
        session, names = self._session, self._session.keyspace.directory
        keys = [names.members, names.models, names.pods, names.forgotten, names.incarnation, names.specs, names.shards]
        alive_ms, shards = session.lease_ms if is_candidate else 0, session.keyspace.shards
        words = (session.member, alive_ms, session.expiry_ms, f"{random_number():016x}", shards, *models)
        epoch = session.note_server_epoch()
        answer = await session.call("heartbeat", keys, *words)
        session.note_answer(names.members)
        if len(answer) == 1:
            raise ShardsError(session.keyspace.shards, shards_of(answer[0]))
        now_ms, incarnation, members, pods, forgotten, specs = answer
        session.note_time(names.members, now_ms, epoch)
        return Heartbeat(
            str(incarnation, "utf-8"),
            tuple(text_of(member) for member in members),
            self._registered.read(pairs(pods), pairs(specs)),
            frozenset(text_of(pod) for pod in forgotten),
        )

    async def check_shards(self) -> None:
        """Raises ShardsError where other indexers split their models otherwise; StoreError where Redis does not answer."""
        session = self._session
        try:
            written = await written_shards(session.client, session.keyspace)
        except RedisError as error:
            raise session.failed(error, session.keyspace.directory.shards) from error
        if written not in (None, session.keyspace.shards):
            raise ShardsError(session.keyspace.shards, written)

    async def leave(self) -> None:
        """This indexer ends: the others need not wait for its membership to run out. Never raises StoreError."""
        try:
            await answer_of(self._session.client.zrem(self._session.keyspace.directory.members, self._session.member))
        except RedisError as error:
            log.info("membership not ended", extra={"error": said(error)})
