"""Asking Redis how it is. It only reads, a bounded number of keys that are known by name, and never walks the keyspace."""

import asyncio
import time
from typing import Any

from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, RedisError

from indexer.store.client.connection import Client, answer_of, connect, is_away, said
from indexer.store.condition import ModelCondition, RedisCondition
from indexer.store.keyspace import LAYOUT, Keyspace, shards_of, stream_of, text_of

PINGS = 5
MODELS_MAX = 64
STREAMS_MAX = 1_024
# Layouts of other versions are looked for up to this one.
LAYOUT_MAX = 16


async def inspect(url: str, namespace: str, timeout_s: float) -> RedisCondition:
    """Raises SettingError for a URL that cannot be used; for nothing else."""
    client = connect(url, timeout_s)
    try:
        async with asyncio.timeout(4 * timeout_s):
            return await _inspect(client, Keyspace(namespace))
    except TimeoutError:
        return RedisCondition(failure="unreachable", error=f"no answers within {4 * timeout_s:g} s")
    except BusyLoadingError as error:
        return RedisCondition(failure="loading", error=said(error))
    except (AuthenticationError, AuthorizationError) as error:  # the library counts them among what keeps it from connecting
        return RedisCondition(failure="refusing", error=said(error))
    except RedisError as error:
        return RedisCondition(failure="unreachable" if is_away(error) else "refusing", error=said(error))
    finally:
        await client.aclose()


async def _inspect(client: Client, keyspace: Keyspace) -> RedisCondition:
    await answer_of(client.ping())
    info: dict[str, Any] = await answer_of(client.info("all"))
    ping_s = min([await _ping_s(client) for _ in range(PINGS)])
    seconds, microseconds = await answer_of(client.time())
    skew_s = seconds + microseconds / 1e6 - time.time()
    now_ms = seconds * 1000 + microseconds // 1000
    names = keyspace.directory
    pipeline = client.pipeline(transaction=False)
    pipeline.zcount(names.members, now_ms, "+inf")
    pipeline.hlen(names.pods)
    pipeline.zrangebyscore(names.models, now_ms, "+inf", start=0, num=MODELS_MAX)
    pipeline.exists(names.incarnation)
    pipeline.get(names.shards)
    members, pods, models, has_incarnation, shards = await answer_of(pipeline.execute())
    keyspace.shards = shards_of(shards)
    return RedisCondition(
        version=str(info.get("valkey_version") or info.get("redis_version", "")),
        server="valkey" if "valkey_version" in info else "redis",
        policy=str(info.get("maxmemory_policy", "")),
        used_bytes=_int(info.get("used_memory")),
        bytes_max=_int(info.get("maxmemory")),
        is_loading=_int(info.get("loading")) == 1,
        role=str(info.get("role", "master")),
        has_write_error=info.get("rdb_last_bgsave_status") == "err" or info.get("aof_last_write_status") == "err",
        ping_s=ping_s,
        skew_s=skew_s,
        members=members,
        pods=pods,
        models=[await _model(client, keyspace, text_of(model), now_ms) for model in models],
        shards=keyspace.shards,
        layouts=await _layouts(client, keyspace.namespace),
        is_empty=not (members or pods or models or has_incarnation),
    )


async def _ping_s(client: Client) -> float:
    started_s = time.monotonic()
    await answer_of(client.ping())
    return time.monotonic() - started_s


async def _model(client: Client, keyspace: Keyspace, model: str, now_ms: int) -> ModelCondition:
    """Owners confirm their streams every second, and each has a lease in its owner's name."""
    trusted: list[Any] = []
    for number in range(keyspace.shards):
        trusted += await answer_of(client.zrange(keyspace.model(model, number).streams, 0, STREAMS_MAX - 1, withscores=True))
    pipeline = client.pipeline(transaction=False)
    streams = []
    for name, until_ms in trusted[:STREAMS_MAX]:
        try:
            streams.append((stream_of(model, name), until_ms))
        except ValueError:  # not written by an indexer
            continue
        stream = streams[-1][0]
        keys = keyspace.of(stream)
        pipeline.hget(keys.lease(stream), "owner")
        pipeline.exists(keys.state(stream))
    answers = await answer_of(pipeline.execute()) if streams else []
    # One without a state has expired.
    known = [(*stream, owner) for stream, owner, has_state in zip(streams, answers[::2], answers[1::2], strict=True) if has_state]
    unowned = [f"{stream.pod} rank {stream.rank}" for stream, until_ms, owner in known if owner is None or until_ms < now_ms]
    return ModelCondition(model, len(known), unowned)


async def _layouts(client: Client, namespace: str) -> list[int]:
    """Other versions of the layout whose indexers sent heartbeats."""
    others = [layout for layout in range(LAYOUT_MAX + 1) if layout != LAYOUT]
    pipeline = client.pipeline(transaction=False)
    for layout in others:
        pipeline.exists(f"{namespace}:{layout}:{{directory}}:models", f"{namespace}:{layout}:{{directory}}:members")
    found = await answer_of(pipeline.execute())
    return [layout for layout, count in zip(others, found, strict=True) if count]


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
