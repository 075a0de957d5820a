"""What one Redis does with the commands that the product sends: values by key, with times to live.

Values are bytes; keys are text, as the product makes them. `test_redis_model.py` compares it with a real server, command by command.
"""

from collections.abc import Callable
from copy import deepcopy
from hashlib import blake2b
from typing import Any

from redis.exceptions import ResponseError

Word = bytes | str | int | float


# So few, that what small streams hold is read in several pieces.
PIECE_FIELDS = 6


class Log:
    """A Redis stream: identifiers and the one field `e` of each entry."""

    def __init__(self) -> None:
        self.entries: list[tuple[tuple[int, int], bytes]] = []
        self.last = (0, 0)


Value = bytes | dict[bytes, bytes] | dict[bytes, float] | Log


def packed(word: Word) -> bytes:
    """As Redis keeps it."""
    return word if isinstance(word, bytes) else str(word).encode()


def score(number: float) -> bytes:
    """A score as Redis prints it."""
    return b"%d" % number if number == int(number) else repr(number).encode()


class RedisModel:
    """`clock` tells the milliseconds of its clock. `on_append` is called with the key of a log that has a new entry."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self.clock = clock
        self.on_append: Callable[[str], None] = lambda key: None
        self.values: dict[str, Any] = {}
        self.until_ms: dict[str, int] = {}

    # A copy of all that it holds

    def copy(self) -> tuple[dict[str, Any], dict[str, int]]:
        """To go back to."""
        return deepcopy(self.values), dict(self.until_ms)

    def go_back(self, held: tuple[dict[str, Any], dict[str, int]]) -> None:
        """Hold what it held when this was copied."""
        self.values, self.until_ms = deepcopy(held[0]), dict(held[1])

    # Keys

    def get(self, key: str) -> Any:
        """The value, None where there is none."""
        until_ms = self.until_ms.get(key)
        if until_ms is not None and until_ms <= self.clock():
            self.unlink(key)
        return self.values.get(key)

    def hash(self, key: str) -> dict[bytes, bytes]:
        """To read."""
        return self.get(key) or {}

    def make(self, key: str, kind: type) -> Any:
        """The value, a new one where there is none."""
        value = self.get(key)
        if value is None:
            value = self.values[key] = kind()
        return value

    def exists(self, key: str) -> bool:
        return self.get(key) is not None

    def unlink(self, key: str) -> int:
        self.until_ms.pop(key, None)
        return int(self.values.pop(key, None) is not None)

    def pexpire(self, key: str, ttl_ms: Word) -> int:
        if not self.exists(key):
            return 0
        if int(ttl_ms) <= 0:
            self.unlink(key)
        else:
            self.until_ms[key] = self.clock() + int(ttl_ms)
        return 1

    def pttl(self, key: str) -> int:
        if not self.exists(key):
            return -2
        until_ms = self.until_ms.get(key)
        return -1 if until_ms is None else until_ms - self.clock()

    def persist(self, key: str) -> None:
        self.until_ms.pop(key, None)

    def time(self) -> list[int]:
        """Seconds and microseconds."""
        return [self.clock() // 1000, self.clock() % 1000 * 1000]

    # Strings

    def set(self, key: str, value: Word, *, only_new: bool = False, ttl_ms: Word | None = None) -> bytes | None:
        if only_new and self.exists(key):
            return None
        self.unlink(key)
        self.values[key] = packed(value)
        if ttl_ms is not None:
            self.pexpire(key, ttl_ms)
        return b"OK"

    # Hashes

    def hset(self, key: str, *words: Word) -> int:
        held = self.make(key, dict)
        before = len(held)
        for field, value in zip(words[::2], words[1::2], strict=True):
            held[packed(field)] = packed(value)
        return len(held) - before

    def hdel(self, key: str, *fields: Word) -> int:
        held = self.get(key)
        if held is None:
            return 0
        gone = sum(held.pop(packed(field), None) is not None for field in fields)
        if not held:
            self.unlink(key)
        return gone

    def hmget(self, key: str, *fields: str) -> list[bytes | None]:
        held = self.hash(key)
        return [held.get(field.encode()) for field in fields]

    def hgetall(self, key: str) -> list[bytes]:
        """Flat, as scripts and the protocol have it."""
        return [word for pair in self.hash(key).items() for word in pair]

    def hscan(self, key: str, cursor: int) -> tuple[int, dict[bytes, bytes]]:
        """A piece, whatever number is asked for: what is there from the first piece to the last is in one of them."""
        ordered = sorted((place, field) for field in self.hash(key) if (place := _place_of(field)) >= cursor)
        piece = ordered[:PIECE_FIELDS]
        found = {field: self.hash(key)[field] for _, field in piece}
        return (piece[-1][0] + 1 if len(ordered) > len(piece) else 0), found

    # Sorted sets

    def zadd(self, key: str, value: Word, member: Word) -> int:
        held = self.make(key, dict)
        is_new = packed(member) not in held
        held[packed(member)] = float(value)
        return int(is_new)

    def zrem(self, key: str, member: Word) -> int:
        return self.hdel(key, member)

    def zrange(self, key: str) -> list[tuple[bytes, float]]:
        """Members with their scores, lowest first."""
        held: dict[bytes, float] = self.get(key) or {}
        return sorted(held.items(), key=lambda item: (item[1], item[0]))

    def zremrangebyscore(self, key: str, lowest: float, highest: float) -> None:
        for member, value in self.zrange(key):
            if lowest <= value <= highest:
                self.zrem(key, member)

    # Logs

    def xadd(self, key: str, entry: Word) -> None:
        log: Log = self.make(key, Log)
        log.last = max((self.clock(), 0), (log.last[0], log.last[1] + 1))
        log.entries.append((log.last, packed(entry)))
        self.on_append(key)

    def xtrim(self, key: str, kept: int) -> None:
        """A log that keeps no more than this number of entries: a server trims whole nodes at a time of its own choice."""
        log = self.get(key)
        if log is not None:
            del log.entries[: max(0, len(log.entries) - kept)]

    def last_identifier(self, key: str) -> bytes:
        log: Log | None = self.get(key)
        return b"0-0" if log is None else b"%d-%d" % log.last

    def xread(self, logs: dict[str, str], count: int) -> list[list[Any]]:
        """As the protocol has it; empty where there is nothing new."""
        found: list[list[Any]] = []
        for key, after in logs.items():
            log: Log | None = self.get(key)
            ms, _, number = after.partition("-")
            position = (int(ms), int(number))
            if log is None or log.last <= position:
                continue
            entries = [(b"%d-%d" % identifier, {b"e": entry}) for identifier, entry in log.entries if identifier > position][:count]
            if entries:
                found.append([key.encode(), entries])
        return found

    # Commands by their names

    def execute(self, command: str, *words: Any) -> Any:
        """The answer to one command that is no script. Raises ResponseError for one that is not known."""
        match command, words:
            case "HSET", (key, *pairs):
                return self.hset(key, *pairs)
            case "HDEL", (key, *fields):
                return self.hdel(key, *fields)
            case "GET", (key,):
                return self.get(key)
            case "HGET", (key, field):
                return self.hash(key).get(packed(field))
            case "HGETALL", (key,):
                return dict(self.hash(key))
            case "HSCAN", (key, cursor, _):
                return self.hscan(key, cursor)
            case "PEXPIRE", (key, ttl_ms):
                return self.pexpire(key, ttl_ms)
            case "TIME", ():
                return tuple(self.time())
            case "ZRANGE", (key,):
                return self.zrange(key)
            case "ZREM", (key, member):
                return self.zrem(key, member)
            case "ZSCORE", (key, member):
                return (self.get(key) or {}).get(packed(member))
            case "SET", (key, value, only_new, ttl_ms):
                return self.set(key, value, only_new=only_new, ttl_ms=ttl_ms)
            case _:
                raise ResponseError(f"unknown command {command!r}")


def _place_of(field: bytes) -> int:
    """Where in a scan a field comes: a random place, as in a table of hashes."""
    return int.from_bytes(blake2b(field, digest_size=6).digest(), "big")
