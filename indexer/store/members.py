"""The indexers that share a Redis, as each of them announces itself."""

import logging
from collections.abc import Iterable

from msgspec import Struct
from redis.exceptions import RedisError

from indexer.engines.spec import EngineSpec
from indexer.store.client.connection import answer_of, said
from indexer.store.keyspace import text_of
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


class Members:
    """This indexer among the others."""

    def __init__(self, session: StoreSession) -> None:
        self._session = session
        self._registered = RegisteredPods()

    async def heartbeat(self, models: Iterable[str], *, is_candidate: bool = True) -> Heartbeat:
        """Send the heartbeat with this indexer's models, and read the other members. `is_candidate`: whether it may own streams.

        Raises StoreError.
        """
        session, names = self._session, self._session.keyspace.directory
        keys = [names.members, names.models, names.pods, names.forgotten, names.incarnation, names.specs]
        words = (session.member, session.lease_ms if is_candidate else 0, session.expiry_ms, f"{random_number():016x}", *models)
        epoch = session.note_server_epoch()
        now_ms, incarnation, members, pods, forgotten, specs = await session.call("heartbeat", keys, *words)
        session.note_time(names.members, now_ms, epoch)
        session.note_answer(names.members)
        return Heartbeat(
            str(incarnation, "utf-8"),
            tuple(text_of(member) for member in members),
            self._registered.read(pairs(pods), pairs(specs)),
            frozenset(text_of(pod) for pod in forgotten),
        )

    async def leave(self) -> None:
        """This indexer ends: the others need not wait for its membership to run out. Never raises StoreError."""
        try:
            await answer_of(self._session.client.zrem(self._session.keyspace.directory.members, self._session.member))
        except RedisError as error:
            log.info("membership not ended", extra={"error": said(error)})
