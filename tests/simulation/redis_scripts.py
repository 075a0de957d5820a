"""What the product's Lua scripts do, in the words of the model. `test_redis_model.py` compares each with the script itself on a real server."""

from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.redis_model import RedisModel, Word, packed, score

PARTS = 7
PLAIN_BYTES, FIELD_BYTES = 26, 8

Part = tuple[list[Word], list[bytes]]
"""What to set (field, value, field, value …), and which fields to delete."""


def run_script(redis: RedisModel, script: str, keys: Sequence[str], words: Sequence[Word]) -> Any:
    """The script's answer, as the protocol has it."""
    return SCRIPTS[script](redis, list(keys), list(words))


def _text(number: float) -> bytes:
    return b"%d" % number


def _read_parts(words: Sequence[Word]) -> list[Part]:
    parts: list[Part] = []
    at = 0
    for _ in range(PARTS):
        plain, count = packed(words[at]), int(words[at + 1])
        sets: list[Word] = []
        for start in range(0, len(plain), PLAIN_BYTES):
            sets += [plain[start : start + FIELD_BYTES], plain[start + FIELD_BYTES : start + PLAIN_BYTES]]
        sets += words[at + 2 : at + 2 + count]
        gone = []
        for width, fields in ((8, packed(words[at + 2 + count])), (9, packed(words[at + 3 + count]))):
            gone += [fields[start : start + width] for start in range(0, len(fields), width)]
        parts.append((sets, gone))
        at += 4 + count
    return parts


def _set_parts(redis: RedisModel, parts: Sequence[Part], keys: Sequence[str]) -> None:
    for (sets, _), key in zip(parts, keys, strict=True):
        if sets:
            redis.hset(key, *sets)


def _delete_parts(redis: RedisModel, parts: Sequence[Part], keys: Sequence[str]) -> None:
    for (_, gone), key in zip(parts, keys, strict=True):
        if gone:
            redis.hdel(key, *gone)


def _lengths(redis: RedisModel, keys: Sequence[str]) -> bytes:
    return b",".join(b"%d" % len(redis.hash(key)) for key in keys)


def _record(
    redis: RedisModel, keys: Sequence[str], fields: Sequence[Word], entry: Word, ttls: tuple[Word, Word], stream: Word, trusted: Word
) -> None:
    (state, log, streams), (state_ttl, blocks_ttl) = keys, ttls
    redis.hset(state, *fields)
    redis.pexpire(state, state_ttl)
    redis.xadd(log, entry)
    redis.pexpire(log, state_ttl)
    if packed(trusted) != b"0" and int(trusted) - int(blocks_ttl) <= redis.clock():
        redis.zadd(streams, trusted, stream)
        redis.pexpire(streams, state_ttl)


def _append(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    fence, number, generation, after, head, entry, _, state_ttl, blocks_ttl, trusted, stream, grows, empties, *more = words
    held = redis.hmget(keys[0], "gen", "fence", "number")
    if held[0] is None:
        return [-1]
    if held[1] != packed(fence):
        return [0]
    if held[0] != packed(generation):
        return [-2]
    if held[2] != packed(number):
        return [-3, held[2]]
    parts, hashes = _read_parts(more), keys[3:]
    if packed(empties) == b"1":
        redis.unlink(hashes[0])
    if packed(grows) == b"1":
        _set_parts(redis, parts, hashes)
        _delete_parts(redis, parts, hashes)
    else:
        _delete_parts(redis, parts, hashes)
        _set_parts(redis, parts, hashes)
    for (sets, _), key in zip(parts, hashes, strict=True):
        if sets:
            redis.pexpire(key, blocks_ttl)
    fields = ("number", after, "head", head, "lengths", _lengths(redis, hashes))
    _record(redis, keys[:3], fields, entry, (state_ttl, blocks_ttl), stream, trusted)
    return [1]


def _switch(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    fence, owner, generation, after, head, entry, _, state_ttl, blocks_ttl, trusted, stream, incarnation, *more = words
    held = redis.hash(keys[0]).get(b"fence")
    if held is not None:
        if held != packed(fence):
            return [0]
    elif redis.hash(keys[4]).get(b"owner") != packed(owner):
        return [0]
    redis.pexpire(keys[0], state_ttl)
    new, old = keys[5 : 5 + PARTS], keys[5 + PARTS :]
    for key in old:
        redis.unlink(key)
    parts = _read_parts(more)
    _set_parts(redis, parts, new)
    _delete_parts(redis, parts, new)
    redis.set(keys[3], incarnation, only_new=True, ttl_ms=blocks_ttl)
    fields = ("gen", generation, "fence", fence, "number", after, "head", head, "lengths", _lengths(redis, new))
    _record(redis, keys[:3], fields, entry, (state_ttl, blocks_ttl), stream, trusted)
    for key in new:
        redis.pexpire(key, blocks_ttl)
    return [1, *(len(redis.hash(key)) for key in new)]


def _claim(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    lease, state, incarnation = keys
    member, lease_ms, fence, state_ttl, new_incarnation, mode = words
    owner = redis.hash(lease).get(b"owner")
    if redis.pttl(lease) > int(lease_ms) + int(state_ttl):
        owner = None
    if owner is not None and owner != packed(member) and mode != "force":
        if mode == "want":
            redis.hset(lease, "want", member)
        return [0, owner]
    redis.hset(lease, "owner", member)
    redis.hdel(lease, "want")
    redis.pexpire(lease, lease_ms)
    redis.set(incarnation, new_incarnation, only_new=True, ttl_ms=state_ttl)
    held = redis.hmget(state, "gen", "fence", "number", "head", "lengths")
    if held[0] is None:
        return [1, redis.get(incarnation)]
    redis.hset(state, "fence", fence)
    redis.pexpire(state, state_ttl)
    return [1, redis.get(incarnation), *held]


def _delete(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    fence, generation, stream, entry, _, log_ttl = words
    held = redis.hmget(keys[0], "gen", "fence")
    if held[0] is not None and packed(fence) != b"" and held[1] != packed(fence):
        return [0]
    if (held[0] or b"") != packed(generation):
        return [-2, held[0]]
    redis.unlink(keys[0])
    for key in keys[3:]:
        redis.unlink(key)
    redis.zrem(keys[2], stream)
    redis.xadd(keys[1], entry)
    redis.pexpire(keys[1], log_ttl)
    return [1]


def _heartbeat(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    members, models, pods, forgotten, incarnation, specs, shards = keys
    member, alive_ms, ttl_ms, new_incarnation, own_shards, *named = words
    now_ms = redis.clock()
    redis.zremrangebyscore(models, float("-inf"), now_ms)
    written = redis.get(shards) or (b"1" if redis.exists(models) else None)
    if written not in (None, packed(own_shards)):
        return [written]
    if packed(own_shards) != b"1":
        redis.set(shards, own_shards)
        redis.pexpire(shards, ttl_ms)
    redis.pexpire(members, ttl_ms)
    redis.zremrangebyscore(members, float("-inf"), now_ms)
    redis.zremrangebyscore(members, now_ms + int(alive_ms) + int(ttl_ms), float("inf"))
    if packed(alive_ms) == b"0":
        redis.zrem(members, member)
    else:
        redis.zadd(members, now_ms + int(alive_ms), member)
        redis.pexpire(members, alive_ms)
    for model in named:
        redis.zadd(models, now_ms + int(ttl_ms), model)
    redis.pexpire(models, ttl_ms)
    redis.zremrangebyscore(forgotten, float("-inf"), now_ms)
    redis.set(incarnation, new_incarnation, only_new=True)
    if redis.exists(pods):
        redis.persist(incarnation)
    else:
        redis.pexpire(incarnation, ttl_ms)
    living, gone = ([name for name, _ in redis.zrange(key)] for key in (members, forgotten))
    return [_text(now_ms), redis.get(incarnation), living, redis.hgetall(pods), gone, redis.hgetall(specs)]


def _peek(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    return [redis.last_identifier(keys[1]), *redis.hmget(keys[0], "gen", "fence", "number", "head")]


def _read_clock(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    return _text(redis.clock())


def _read_loads(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    return [_text(redis.clock()), *(redis.get(key) for key in keys)]


def _register(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    pods, forgotten, incarnation, specs, marks = keys
    pod, plain, new_incarnation, keeps_old, whole, mark = words
    if packed(keeps_old) == b"1" and (packed(pod) in redis.hash(pods) or packed(pod) in (redis.get(forgotten) or {})):
        return 0
    is_new = redis.hset(pods, pod, plain)
    redis.hset(marks, pod, mark)
    if packed(whole) == b"":
        redis.hdel(specs, pod)
    else:
        redis.hset(specs, pod, whole)
    redis.zrem(forgotten, pod)
    redis.set(incarnation, new_incarnation, only_new=True)
    redis.persist(incarnation)
    return is_new


def _unregister(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    pods, forgotten, incarnation, specs, marks = keys
    pod, forgotten_ms, was_deleted, former_mark = words
    mark = redis.hash(marks).get(packed(pod), b"")
    if packed(was_deleted) == b"1" and packed(pod) in redis.hash(pods) and (mark == b"" or mark != packed(former_mark)):
        return [-1]
    was_known = redis.hdel(pods, pod)
    redis.hdel(specs, pod)
    redis.hdel(marks, pod)
    redis.zadd(forgotten, redis.clock() + int(forgotten_ms), pod)
    redis.pexpire(forgotten, forgotten_ms)
    if not redis.exists(pods):
        redis.unlink(specs)
        redis.unlink(marks)
        redis.pexpire(incarnation, forgotten_ms)
    return [was_known, mark]


def _release(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    if redis.hash(keys[0]).get(b"owner") != packed(words[0]):
        return 0
    return redis.unlink(keys[0])


def _renew(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    streams, log, incarnation = keys[:3]
    owner, lease_ms, state_ttl, blocks_ttl = words[:4]
    now_ms = redis.clock()
    redis.pexpire(streams, state_ttl)
    redis.pexpire(log, state_ttl)
    redis.pexpire(incarnation, blocks_ttl)
    redis.zremrangebyscore(streams, float("-inf"), now_ms - int(state_ttl))
    result: list[Any] = [_text(now_ms), redis.get(incarnation)]
    for number in range((len(keys) - 3) // (2 + PARTS)):
        at = 3 + number * (2 + PARTS)
        lease, state, hashes = keys[at], keys[at + 1], keys[at + 2 : at + 2 + PARTS]
        result.append(_renew_one(redis, streams, lease, state, hashes, (owner, lease_ms, state_ttl, blocks_ttl), words[4 + 7 * number :]))
    return result


def _renew_one(
    redis: RedisModel, streams: str, lease: str, state: str, hashes: list[str], of_all: tuple[Word, Word, Word, Word], words: Sequence[Word]
) -> Any:
    owner, lease_ms, state_ttl, blocks_ttl = of_all
    stream, fence, status, is_connected, trusted, generation, number = words[:7]
    owned_by, wanted_by = redis.hmget(lease, "owner", "want")
    held = redis.hmget(state, "gen", "fence", "number", "lengths")
    if (owned_by is not None and owned_by != packed(owner)) or (held[1] is not None and held[1] != packed(fence)):
        return [0]
    if owned_by is None:
        redis.hset(lease, "owner", owner)
    redis.pexpire(lease, lease_ms)
    if held[0] is None:
        return [-1]
    redis.hset(state, "status", status)
    if packed(is_connected) == b"1":
        redis.pexpire(state, state_ttl)
        for key in hashes:
            redis.pexpire(key, blocks_ttl)
    is_whole = _lengths(redis, hashes) == held[3]
    is_by_this_clock = int(trusted) - int(lease_ms) <= redis.clock()
    if is_whole and is_by_this_clock and held[0] == packed(generation) and int(held[2] or 0) >= int(number):
        redis.zadd(streams, trusted, stream)
    return [1, held[0], held[2], int(is_whole), wanted_by]


def _survey(redis: RedisModel, keys: list[str], words: list[Word]) -> Any:
    streams, log, incarnation, *states = keys
    trusted = [word for name, until_ms in redis.zrange(streams) for word in (name, score(until_ms))]
    found = [redis.hmget(state, "gen", "fence", "number", "status") for state in states]
    return [_text(redis.clock()), redis.last_identifier(log), redis.get(incarnation), trusted, *found]


SCRIPTS: dict[str, Callable[[RedisModel, list[str], list[Word]], Any]] = {
    "append": _append,
    "claim": _claim,
    "delete": _delete,
    "heartbeat": _heartbeat,
    "peek": _peek,
    "read_clock": _read_clock,
    "read_loads": _read_loads,
    "register": _register,
    "release": _release,
    "renew": _renew,
    "survey": _survey,
    "switch": _switch,
    "unregister": _unregister,
}
