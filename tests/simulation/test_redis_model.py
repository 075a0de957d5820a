"""The model of Redis does what a real server does, script by script: the same answers, the same keys afterwards, the same times to live.

Random calls with few different words meet in each other's keys. The real server's clock runs, so times are compared with a tolerance and left out of
answers.
"""

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from indexer.store.keyspace import PARTS, Keyspace
from indexer.store.scripts import SCRIPTS
from tests.redis_server import RedisServer
from tests.simulation import redis_scripts
from tests.simulation.redis_model import Log, RedisModel, Word
from tests.simulation.virtual_loop import VirtualLoop

KEYS = Keyspace("kvi").model("m")
DIRECTORY = Keyspace("kvi").directory
PODS = ("a", "b")
GENERATIONS, FENCES, NUMBERS = (1, 2), (11, 12), (1, 2, 3)
TTL_MS = 60_000
LEASE_MS = 25_000
TOLERANCE_MS = 20_000
# Times in milliseconds of the present, which two servers never agree on.
NOW = re.compile(rb"1[0-9]{12}(-[0-9]+)?")
CALLS = 150
# Later than any clock.
FAR_MS = 9_000_000_000_000


class Calls:
    """Random calls of the scripts."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numbers: dict[str, tuple[int, int, int]] = {}

    def next(self) -> tuple[str, list[str], list[Word]]:
        """A script, its keys and its words."""
        script = self._random.choice([name for name in SCRIPTS if name != "write_loads"])
        made: tuple[list[str], list[Word]] = getattr(self, f"_{script}")(self._random.choice(PODS))
        return script, *made

    def _one(self, *words: Any) -> Any:
        return self._random.choice(words)

    def _parts(self, pod: str, generation: int) -> list[str]:
        return [f"{KEYS.prefix}{part}:0:{pod}:{generation:016x}" for part in PARTS]

    def _block_words(self) -> list[Word]:
        found: list[Word] = []
        for _ in PARTS:
            fields = [bytes([self._random.randrange(3)]) * 8 for _ in range(2)]
            plain = b"".join(field + bytes([self._random.randrange(4)]) * 18 for field in fields[: self._random.randrange(3)])
            sets = [b"\x07" * 9, b"value"] if self._random.random() < 0.3 else []
            found += [plain, len(sets), *sets, b"".join(fields[: self._random.randrange(3)]), b"\x07" * 9 if self._random.random() < 0.2 else b""]
        return found

    def _append(self, pod: str) -> tuple[list[str], list[Word]]:
        generation = self._one(*GENERATIONS)
        keys = [f"{KEYS.prefix}state:0:{pod}", KEYS.log, KEYS.streams, *self._parts(pod, generation)]
        words = [self._one(*FENCES), self._one(*NUMBERS), generation, self._one(*NUMBERS), b"head", b"entry", 1000, TTL_MS, 2 * TTL_MS]
        return keys, [*words, self._one(0, 5_000, FAR_MS), f"0:{pod}", self._one(0, 1), self._one(0, 0, 1), *self._block_words()]

    def _switch(self, pod: str) -> tuple[list[str], list[Word]]:
        generation = self._one(*GENERATIONS)
        keys = [f"{KEYS.prefix}state:0:{pod}", KEYS.log, KEYS.streams, KEYS.incarnation, f"{KEYS.prefix}lease:0:{pod}"]
        keys += [*self._parts(pod, generation), *self._one([], self._parts(pod, 3 - generation))]
        words = [self._one(*FENCES), self._one("x", "y"), generation, self._one(*NUMBERS), b"head", b"entry", 1000, TTL_MS, 2 * TTL_MS]
        return keys, [*words, self._one(0, 6_000, FAR_MS), f"0:{pod}", "incarnation", *self._block_words()]

    def _claim(self, pod: str) -> tuple[list[str], list[Word]]:
        keys = [f"{KEYS.prefix}lease:0:{pod}", f"{KEYS.prefix}state:0:{pod}", KEYS.incarnation]
        # A short time beside the long one of a lease that there is: as after the clock was set back.
        words = [self._one("x", "y"), self._one(TTL_MS, LEASE_MS), self._one(*FENCES), self._one(TTL_MS, TTL_MS, LEASE_MS)]
        return keys, [*words, "incarnation", self._one("free", "want", "force")]

    def _delete(self, pod: str) -> tuple[list[str], list[Word]]:
        generation = self._one("", *GENERATIONS)
        parts = self._parts(pod, generation) if generation else []
        keys = [f"{KEYS.prefix}state:0:{pod}", KEYS.log, KEYS.streams, *parts]
        return keys, [self._one("", *FENCES), generation, f"0:{pod}", b"gone", 1000, TTL_MS]

    def _heartbeat(self, pod: str) -> tuple[list[str], list[Word]]:
        names = DIRECTORY
        keys = [names.members, names.models, names.pods, names.forgotten, names.incarnation, names.specs, names.shards]
        words = [self._one("x", "y"), self._one(0, TTL_MS), self._one(2 * TTL_MS, LEASE_MS)]
        return keys, [*words, "incarnation", self._one(1, 1, 1, 2), *self._one([], ["m"], ["m", "n"])]

    def _peek(self, pod: str) -> tuple[list[str], list[Word]]:
        return [f"{KEYS.prefix}state:0:{pod}", KEYS.log], []

    def _read_clock(self, pod: str) -> tuple[list[str], list[Word]]:
        return [KEYS.incarnation], []

    def _read_loads(self, pod: str) -> tuple[list[str], list[Word]]:
        return [KEYS.load(pod)], []

    def _register(self, pod: str) -> tuple[list[str], list[Word]]:
        return self._registry_keys(), [pod, self._one("plain", "other"), "incarnation", self._one(0, 1), self._one("", "whole"), self._one("1", "2")]

    def _unregister(self, pod: str) -> tuple[list[str], list[Word]]:
        return self._registry_keys(), [pod, TTL_MS, self._one(0, 1), self._one("", "1", "2")]

    @staticmethod
    def _registry_keys() -> list[str]:
        return [DIRECTORY.pods, DIRECTORY.forgotten, DIRECTORY.incarnation, DIRECTORY.specs, DIRECTORY.marks]

    def _release(self, pod: str) -> tuple[list[str], list[Word]]:
        return [f"{KEYS.prefix}lease:0:{pod}"], [self._one("x", "y")]

    def _renew(self, pod: str) -> tuple[list[str], list[Word]]:
        keys, words = [KEYS.streams, KEYS.log, KEYS.incarnation], [self._one("x", "y"), TTL_MS, TTL_MS, 2 * TTL_MS]
        for each in self._one(PODS, (pod,), ()):
            generation = self._one(*GENERATIONS)
            keys += [f"{KEYS.prefix}lease:0:{each}", f"{KEYS.prefix}state:0:{each}", *self._parts(each, generation)]
            words += [f"0:{each}", self._one(*FENCES), b"status", self._one(0, 1), self._one(7_000, 8_000, FAR_MS), generation, self._one(*NUMBERS)]
        return keys, words

    def _survey(self, pod: str) -> tuple[list[str], list[Word]]:
        return [KEYS.streams, KEYS.log, KEYS.incarnation, *(f"{KEYS.prefix}state:0:{each}" for each in PODS)], []


def without_times(script: str, answer: Any) -> Any:
    """An answer without what two clocks disagree about: times, and the order of what is sorted by them."""
    if script == "heartbeat":
        answer = [sorted(each) if number in (2, 4) else each for number, each in enumerate(answer)]
    if isinstance(answer, list):
        return [without_times("", each) for each in answer]
    return NOW.sub(b"now", answer) if isinstance(answer, bytes) else answer


def content(client: Any) -> dict[str, Any]:
    """All that a server holds; of logs, the entries."""
    found: dict[str, Any] = {}
    for key in client.scan_iter("*"):
        match client.type(key):
            case b"hash":
                found[key.decode()] = client.hgetall(key)
            case b"zset":
                found[key.decode()] = {member: NOW.sub(b"now", b"%d" % score) for member, score in client.zrange(key, 0, -1, withscores=True)}
            case b"stream":
                found[key.decode()] = [fields[b"e"] for _, fields in client.xrange(key)]
            case _:
                found[key.decode()] = client.get(key)
    return found


def content_of_model(model: RedisModel) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in list(model.values):
        value = model.get(key)
        if isinstance(value, Log):
            found[key] = [entry for _, entry in value.entries]
        elif isinstance(value, dict):
            found[key] = {field: NOW.sub(b"now", b"%d" % held) if isinstance(held, float) else held for field, held in value.items()}
        elif value is not None:
            found[key] = value
    return found


@pytest.fixture
def model() -> RedisModel:
    loop = VirtualLoop.new()
    return RedisModel(lambda: 1_700_000_000_000 + int(loop.time() * 1000))


@pytest.fixture
def client(server: RedisServer) -> Iterator["redis.Redis"]:
    with server.client() as client:
        yield client


@pytest.mark.parametrize("seed", range(4))
def test_scripts_do_the_same_in_the_model(model: RedisModel, client: "redis.Redis", seed: int) -> None:
    calls = Calls(seed)
    scripts = {name: client.register_script(source) for name, source in SCRIPTS.items()}
    outcomes = set()
    for number in range(CALLS):
        script, keys, words = calls.next()
        real = without_times(script, scripts[script](keys, words))
        simulated = without_times(script, redis_scripts.run_script(model, script, keys, words))
        assert simulated == real, f"call {number}: {script} {keys} {words}"
        assert content_of_model(model) == content(client), f"after call {number}: {script} {keys} {words}"
        outcomes.add((script, str(real)[:4]))
    for key in content(client):
        ttl_ms = client.pttl(key)
        assert abs(ttl_ms - model.pttl(key)) <= TOLERANCE_MS, f"{key}: {ttl_ms}, not {model.pttl(key)}"
    assert len(outcomes) > len(SCRIPTS), "each script comes to more than one end"


def test_every_script_is_in_the_model() -> None:
    assert redis_scripts.SCRIPTS.keys() == SCRIPTS.keys() - {"write_loads"}, "loads of pods are not simulated"


def test_commands_do_the_same_in_the_model(model: RedisModel, client: "redis.Redis") -> None:
    fields = {bytes([number]) * 8: b"value" for number in range(40)}
    model.hset("h", *(word for pair in fields.items() for word in pair))
    client.hset("h", mapping=dict[Any, Any](fields))
    found, cursor = {}, 0
    while True:
        cursor, piece = model.execute("HSCAN", "h", cursor, 10)
        found.update(piece)
        if not cursor:
            break
    assert found == dict(client.hscan_iter("h")) == fields
    assert model.execute("HGET", "h", b"\x01" * 8) == client.hget("h", b"\x01" * 8)
    assert model.execute("HDEL", "h", *fields) == client.hdel("h", *fields) == len(fields)
    assert (model.exists("h"), client.exists("h")) == (False, 0), "an empty hash is none"
    for only_new in (False, True):
        assert bool(model.execute("SET", "s", "1", only_new, 1000)) == bool(client.set("s", "1", nx=only_new, px=1000))
    model.zadd("z", 2, "b")
    model.zadd("z", 1.5, "c")
    client.zadd("z", {"b": 2, "c": 1.5})
    assert model.execute("ZRANGE", "z") == client.zrange("z", 0, -1, withscores=True)
    assert model.execute("ZSCORE", "z", "c") == client.zscore("z", "c")
    assert model.execute("ZREM", "z", "c") == client.zrem("z", "c")
    assert model.execute("PEXPIRE", "none", 1000) == int(client.pexpire("none", 1000))


def test_logs_are_read_the_same_in_the_model(model: RedisModel, client: "redis.Redis") -> None:
    for entry in (b"1", b"2", b"3"):
        model.xadd("log", entry)
        client.xadd("log", {"e": entry}, id=b"%d-%d" % model.get("log").last)
    first = b"%d-%d" % model.get("log").entries[0][0]
    for logs in ({"log": "0-0"}, {"log": first.decode()}, {"log": model.last_identifier("log").decode()}, {"none": "0-0"}):
        real: Any = client.xread(dict[Any, Any](logs), count=2)
        assert model.xread(logs, 2) == [[name, [(identifier, fields) for identifier, fields in entries]] for name, entries in real]
