"""How busy pods are, for all scorers: each pod's load under its own key, which expires after some seconds."""

import asyncio
import logging
import time
from collections.abc import Sequence

import msgspec
from msgspec import Struct
from redis.exceptions import RedisError

from indexer.engines.load import Load
from indexer.store.client.connection import Client, said
from indexer.store.keyspace import Keyspace, ModelKeys
from indexer.store.scripts import Call, Word, call_all

log = logging.getLogger(__name__)

# Older loads are of no use.
TTL_MS = 30_000
# Loads are gathered for this time before they are written in one call.
GATHER_S = 0.05
# Number of pods written or read in one call.
PODS_MAX = 200


class _Record(Struct, frozen=True, array_like=True):
    """A load in the order of its fields. Another version may have more of them, or fewer."""

    running: int
    waiting: int
    kv_usage: float | None = None
    prompt_tokens_mean: float | None = None
    prefill_tokens_per_s: float | None = None
    kv_tokens: float | None = None
    uncached_tokens_mean: float | None = None
    requests: float | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Record).decode


class LoadWriter:
    """`run` writes what `note` was called with. A load that Redis does not take is lost: a newer one comes soon."""

    def __init__(self, client: Client, keyspace: Keyspace) -> None:
        self._client = client
        self._keyspace = keyspace
        self._pending: dict[ModelKeys, dict[str, tuple[Load, float]]] = {}
        self._woken = asyncio.Event()

    def note(self, model: str, pod: str, load: Load, at_s: float) -> None:
        """`at_s`: when it was measured, by the monotonic clock."""
        self._pending.setdefault(self._keyspace.of_pod(model, pod), {})[pod] = load, at_s
        self._woken.set()

    async def run(self) -> None:
        """Cancel it."""
        while True:
            await self._woken.wait()
            await asyncio.sleep(GATHER_S)
            self._woken.clear()
            pending, self._pending = self._pending, {}
            # A node of a Cluster that is away holds up what it holds only.
            await asyncio.gather(*(self._write(keys, list(loads.items())) for keys, loads in pending.items()))

    async def _write(self, keys: ModelKeys, loads: Sequence[tuple[str, tuple[Load, float]]]) -> None:
        for start in range(0, len(loads), PODS_MAX):
            piece = loads[start : start + PODS_MAX]
            words: list[Word] = [TTL_MS]
            for _, (load, at_s) in piece:
                words += (int((time.monotonic() - at_s) * 1000), _encode(_Record(*msgspec.structs.astuple(load))))
            try:
                (answer,) = await call_all(self._client, [Call("write_loads", [keys.load(pod) for pod, _ in piece], words)])
                if isinstance(answer, RedisError):
                    raise answer
            except RedisError as error:
                log.debug("loads not written", extra={"keys": keys.prefix, "error": said(error)})


def calls(keyspace: Keyspace, model: str, pods: Sequence[str]) -> list[Call]:
    """What to ask for the loads of these pods, which lie in one shard."""
    names = [keyspace.of_pod(model, pod).load(pod) for pod in pods]
    return [Call("read_loads", names[start : start + PODS_MAX]) for start in range(0, len(names), PODS_MAX)]


def decode(pods: Sequence[str], answers: Sequence[Sequence[bytes | None]]) -> tuple[int, dict[str, tuple[Load, int]]]:
    """Redis's time in ms, and pod → its load, and when it was measured. An entry that cannot be decoded is skipped."""
    found: dict[str, tuple[Load, int]] = {}
    values = [value for _, *piece in answers for value in piece]
    for pod, value in zip(pods, values, strict=True):
        if value is None:
            continue
        at_ms, _, content = value.partition(b" ")
        try:
            found[pod] = Load(*msgspec.structs.astuple(_decode(content))), int(at_ms)
        except (msgspec.MsgspecError, ValueError):
            log.debug("load in redis not readable", extra={"pod": pod})
    return int(answers[0][0] or 0), found
