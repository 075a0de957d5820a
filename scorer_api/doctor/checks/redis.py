"""Checks Redis, and what the indexers wrote to it."""

import re
from collections.abc import Iterator

from indexer.store.condition import RedisCondition
from scorer_api.doctor.checks.findings import Finding, finding
from scorer_api.doctor.checks.kinds import Severity

REDIS = "redis"
OLDEST = (6, 2)
NEARLY_FULL = 0.85
FULL = 0.99
SLOW_S = 0.05
NAMES_MAX = 5
FAILURES = {"unreachable": "redis_unreachable", "loading": "redis_loading", "refusing": "redis_refuses"}


def check_redis(seen: RedisCondition, namespace: str) -> list[Finding]:
    """`namespace`: the one that was inspected."""
    if seen.failure is not None:
        return [finding(FAILURES[seen.failure], REDIS, seen.error)]
    found = [*_server(seen), *_memory(seen), *_content(seen, namespace)]
    if found:
        return found
    streams = sum(model.streams for model in seen.models)
    split = f", {seen.shards} shards a model" if seen.shards > 1 else ""
    holds = f"{seen.members} indexers, {streams} streams{split}, {seen.used_bytes / 2**20:.0f} MiB"
    return [finding("redis_well", REDIS, f"{seen.server} {seen.version}, {holds}, PING {seen.ping_s * 1000:.1f} ms")]


def _server(seen: RedisCondition) -> Iterator[Finding]:
    version = tuple(int(part) for part in re.findall(r"\d{1,6}", seen.version)[:2])
    if seen.server == "redis" and version and version < OLDEST:
        yield finding("redis_old", REDIS, f"it is Redis {seen.version}")
    if seen.is_loading:
        yield finding("redis_loading", REDIS, "it says that it is loading its data")
    if seen.role not in ("master", ""):
        yield finding("redis_read_only", REDIS, f"its role is {seen.role}")
    if seen.has_write_error:
        yield finding("redis_write_errors", REDIS, "its last save to disk failed")
    if seen.ping_s > SLOW_S:
        yield finding("redis_slow", REDIS, f"the fastest of a few PINGs took {seen.ping_s * 1000:.0f} ms")


def _memory(seen: RedisCondition) -> Iterator[Finding]:
    if seen.policy and seen.policy != "noeviction":
        yield finding("redis_evicts", REDIS, f"maxmemory-policy is {seen.policy}")
    if seen.bytes_max:
        share = seen.used_bytes / seen.bytes_max
        said = f"{seen.used_bytes / 2**20:.0f} of {seen.bytes_max / 2**20:.0f} MiB are used"
        if share >= FULL:
            yield finding("redis_full", REDIS, said)
        elif share >= NEARLY_FULL:
            yield finding("redis_full", REDIS, said, Severity.WARNING)


def _content(seen: RedisCondition, namespace: str) -> Iterator[Finding]:
    if seen.layouts:
        yield finding("redis_other_layout", REDIS, f"namespace {namespace!r} has keys of layout {', '.join(map(str, seen.layouts))} too")
    if seen.is_empty:
        yield finding("no_indexer", REDIS, f"no indexer ever wrote under namespace {namespace!r} in this database")
        return
    if not seen.members:
        yield finding("no_indexer", REDIS, f"no indexer of namespace {namespace!r} has sent a heartbeat within its lease")
    for model in seen.models:
        if model.unowned:
            names = ", ".join(model.unowned[:NAMES_MAX])
            yield finding("not_followed", REDIS, f"{len(model.unowned)} of {model.streams} streams of {model.model!r} have no living owner: {names}")
