"""The pods that are registered for everybody: reading, registering and forgetting them.

Replicas of older versions refuse a spec with a key that they do not know. So `pods` has the specs without such keys, and `specs` has the whole ones
of pods that have any. What is in `specs` counts while it is about the specs in `pods`: an older replica that replaces a pod leaves it as it was.
"""

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from redis.exceptions import RedisError

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.engines.spec import EngineSpec, is_http_base
from indexer.errors import StoreError
from indexer.store.client.connection import Client, node_of, why
from indexer.store.keyspace import Keyspace, stream_id, text_of
from indexer.store.records import Entry, Kind, encode_entry
from indexer.store.scripts import Word, call
from indexer.store.unconfirmed_registrations import UnconfirmedRegistrations

log = logging.getLogger(__name__)


class Registry:
    """Needs no ownership of anything. Every call raises StoreError where Redis does not answer, or refuses; `note_error` is called before."""

    def __init__(self, client: Client, keyspace: Keyspace, settings: Settings, note_error: Callable[[RedisError, str], None] | None = None) -> None:
        self._client = client
        self._keyspace = keyspace
        self._settings = settings
        self._note_error = note_error
        self._unconfirmed = UnconfirmedRegistrations(settings.pod_expiry_s)

    async def _call(self, script: str, keys: list[str], *words: Word) -> Any:
        try:
            return await call(self._client, script, keys, *words)
        except RedisError as error:
            if self._note_error is not None:
                self._note_error(error, keys[0])
            raise StoreError(why(error)) from error

    async def register(self, specs: tuple[EngineSpec, ...], *, keeps_old: bool = False) -> bool:
        """Make a pod known to all. Returns whether it was not registered. `keeps_old`: one that is stays as it is, and one that was forgotten too."""
        mark, node = secrets.token_hex(8), self.node
        is_new = await self._register(specs, mark, keeps_old=keeps_old)
        if not keeps_old:
            self._unconfirmed.note(specs[0].pod, specs, mark, node)
        return is_new

    async def _register(self, specs: tuple[EngineSpec, ...], mark: str, *, keeps_old: bool) -> bool:
        plain = _plain(specs)
        whole = b"" if plain == specs else msgspec.json.encode(specs)
        words = (specs[0].pod, msgspec.json.encode(plain), secrets.token_hex(8), int(keeps_old), whole, mark)
        return bool(await self._call("register", self._keys, *words))

    async def unregister(self, pod: str) -> bool:
        """Make all forget a pod. Returns whether it was registered."""
        node = self.node
        was_known, mark = await self._call("unregister", self._keys, pod, self._forgotten_ms, 0, "")
        self._unconfirmed.note(pod, None, text_of(mark), node)
        return bool(was_known)

    @property
    def _keys(self) -> list[str]:
        names = self._keyspace.directory
        return [names.pods, names.forgotten, names.incarnation, names.specs, names.marks]

    @property
    def _forgotten_ms(self) -> int:
        return int(self._settings.pod_expiry_s * 1000)

    @property
    def node(self) -> str:
        """The server that knows the pods now, where there may be several."""
        return node_of(self._client, self._keyspace.directory.pods)

    def note_registered(self, pods: Mapping[str, tuple[EngineSpec, ...]], node: str, asked_s: float) -> None:
        """This node answered a question of this time: these pods are registered."""
        self._unconfirmed.note_registered(pods, node, asked_s)

    async def repeat_unconfirmed(self) -> None:
        """Repeat what another server confirmed than is Redis now, where this one lacks it: a failover loses what was not replicated in time.

        Raises StoreError.
        """
        node = self.node
        for pod, record in self._unconfirmed.confirmed_by_others(node):
            if record.specs is not None:
                is_lost = await self._register(record.specs, record.mark, keeps_old=True)
            else:
                was_known, *_ = await self._call("unregister", self._keys, pod, self._forgotten_ms, 1, record.mark)
                is_lost = was_known == 1
                for stream in record.streams if was_known >= 0 else ():
                    await self._delete(stream)
            record.node = node
            if is_lost:
                log.warning("pod changed again, since redis lost that", extra={"pod": pod, "registered": record.specs is not None})

    async def delete(self, stream: StreamKey) -> None:
        """Delete a stream's data, whichever owner it has."""
        await self._delete(stream)
        self._unconfirmed.note_deleted(stream)

    async def _delete(self, stream: StreamKey) -> None:
        keys, name = self._keyspace.of(stream), stream_id(stream)
        generation: int | None = None
        while True:
            entry = encode_entry(Entry(name, Kind.GONE, generation or 0, 0, 0, 0, 0, Trust.EXPIRED, None))
            parts = [] if generation is None else keys.parts(stream, generation)
            limits = (self._settings.limits.store.log_entries_max, int(self._settings.pod_expiry_s * 1000))
            words: tuple[Word, ...] = ("", "" if generation is None else generation, name, entry, *limits)
            answer = await self._call("delete", [keys.state(stream), keys.log, keys.streams, *parts], *words)
            if answer[0] == 1:
                return
            # It has another generation than we thought: this one.
            generation = int(answer[1]) if len(answer) > 1 and answer[1] else None


def _plain(specs: tuple[EngineSpec, ...]) -> tuple[EngineSpec, ...]:
    """As all versions can read them."""
    newer = {"http": None, "drops_last_block": False, "aliases": (), "ranks_share_port": False, "prefill_tokens_per_s": None, "role": "both"}
    return tuple(msgspec.structs.replace(spec, **newer, snapshot=None) for spec in specs)


class RegisteredPods:
    """Reads what was registered. An entry that cannot be decoded is skipped, and logged once."""

    def __init__(self) -> None:
        self._unreadable: set[bytes] = set()

    def read(self, pods: Iterable[tuple[bytes, bytes]], specs: Iterable[tuple[bytes, bytes]] = ()) -> dict[str, tuple[EngineSpec, ...]]:
        """From the fields of the hashes `pods` and `specs`."""
        whole = dict(specs)
        found = {text_of(pod): self._whole(self._specs(pod, text), whole.get(pod)) for pod, text in pods}
        return {pod: known for pod, known in found.items() if known}

    @staticmethod
    def _whole(plain: tuple[EngineSpec, ...], text: bytes | None) -> tuple[EngineSpec, ...]:
        """With what `specs` adds. An entry that cannot be decoded is of a newer version: the others count all the same."""
        if text is None:
            return plain
        try:
            whole = msgspec.json.decode(text, type=tuple[EngineSpec, ...])
        except msgspec.MsgspecError:
            return plain
        return whole if _plain(whole) == plain and all(spec.http is None or is_http_base(spec.http) for spec in whole) else plain

    def _specs(self, pod: bytes, text: bytes) -> tuple[EngineSpec, ...]:
        try:
            return msgspec.json.decode(text, type=tuple[EngineSpec, ...])
        except msgspec.MsgspecError:
            if pod not in self._unreadable:
                log.error("registered pod in redis not readable", extra={"pod": text_of(pod)})
            self._unreadable.add(pod)
            return ()
