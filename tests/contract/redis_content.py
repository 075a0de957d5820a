"""What lies in Redis, decoded, without what changes from run to run."""

import re
from collections import defaultdict
from typing import Any

import msgspec
import redis

from tests.contract.answers import stable

# Positions in an entry of the log.
STREAM, KIND, GENERATION, FENCE, NUMBER, AFTER_FENCE, AFTER_NUMBER, TRUST, BLOCK_SIZE = range(9)
CHANGE = "c"
PART = re.compile(r"(?P<prefix>.*\})(:[a-z]+:)(?P<stream>\d+:[^:]+):(?P<generation>[0-9a-f]{16})")
RANDOM = re.compile(r"[0-9a-f]{16}")
MEMBER = re.compile(r"[^:]+:\d+:[0-9a-f]{8}")
# No score but a time in milliseconds is so large.
TIME_MIN = 10**12

States = dict[str, dict[bytes, bytes]]
Entry = list[Any]


class Content:
    """Reads what lies under a namespace. Of generations and fences it says whether they are those of the stream's state, of numbers how far they are
    from that of the last entry before the stream's first block.
    """

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._client = client
        self._keys = sorted(key.decode() for key in client.scan_iter(f"{namespace}:*"))
        self._states: States = {key: client.hgetall(key) for key in self._keys if ":state:" in key}
        self._logs = {key: self._entries(key) for key in self._keys if key.endswith(":log")}

    def read(self, names: dict[str, str]) -> dict[str, Any]:
        """Key → type, whether it expires, value. `names`: what changes → what stands for it."""
        found: dict[str, Any] = {}
        for key in self._keys:
            kind = self._client.type(key).decode()
            value = stable(self._value(key, kind), names)
            found[self._shown(key)] = {"type": kind, "expires": self._client.pttl(key) > 0, "value": value}
        assert len(found) == len(self._keys), f"keys that differ by a random value only: {self._keys}"
        return found

    def _shown(self, key: str) -> str:
        part = PART.fullmatch(key)
        if part is None:
            return key
        state = self._states.get(f"{part['prefix']}:state:{part['stream']}", {})
        is_current = int(state.get(b"gen", 0)) == int(part["generation"], 16)
        return key.removesuffix(part["generation"]) + ("GENERATION" if is_current else "ANOTHER-GENERATION")

    def _value(self, key: str, kind: str) -> Any:
        if kind == "string":
            return _string(self._client.get(key))
        if kind == "zset":
            return {_name(member): "TIME" if score > TIME_MIN else score for member, score in self._client.zrange(key, 0, -1, withscores=True)}
        if kind == "stream":
            return self._log(key)
        assert kind == "hash", f"{key} is a {kind}"
        if key in self._states:
            return self._state(key)
        fields = sorted(self._client.hgetall(key).items())
        if PART.fullmatch(key) is None:
            return {field.decode(): _text(value) for field, value in fields}
        return {field.hex(): _parked(value) if ":parked:" in key else value.hex() for field, value in fields}

    def _state(self, key: str) -> dict[str, Any]:
        fields = {field.decode(): value for field, value in sorted(self._states[key].items())}
        found: dict[str, Any] = {field: value.decode() for field, value in fields.items() if field not in ("head", "status")}
        prefix, _, stream = key.partition("state:")
        found |= {"gen": "GENERATION", "fence": "FENCE", "number": self._number(int(fields["number"]), prefix, stream)}
        return found | {"head": _hexed(msgspec.msgpack.decode(fields["head"])), "status": msgspec.json.decode(fields["status"])}

    # The log

    def _entries(self, key: str) -> dict[str, list[Entry]]:
        """By stream."""
        found: dict[str, list[Entry]] = defaultdict(list)
        for _, fields in self._client.xrange(key):
            assert list(fields) == [b"e"], f"fields of an entry: {list(fields)}"
            entry = msgspec.msgpack.decode(fields[b"e"])
            found[entry[STREAM]].append(entry)
        return found

    def _log(self, key: str) -> dict[str, list[Entry]]:
        """By stream. How many come before the first block depends on how quick the engine answers: of these the last one that is no change counts."""
        prefix, found = key.removesuffix("log"), {}
        for stream, entries in sorted(self._logs[key].items()):
            first = _first_with_blocks(entries)
            begun = [entry for entry in entries[:first] if entry[KIND] != CHANGE]
            found[stream] = [self._entry(entry, prefix, begins=entry[BLOCK_SIZE] is None) for entry in (*begun[-1:], *entries[first:])]
        return found

    def _entry(self, entry: Entry, prefix: str, *, begins: bool) -> Entry:
        stream = entry[STREAM]
        state = self._states.get(f"{prefix}state:{stream}")
        shown = _hexed(entry)
        if state is None:
            return shown
        shown[GENERATION] = "GENERATION" if entry[GENERATION] == int(state[b"gen"]) else "ANOTHER GENERATION"
        if begins:  # a pod that is registered again meanwhile may be claimed again
            shown[FENCE] = shown[NUMBER] = shown[AFTER_FENCE] = shown[AFTER_NUMBER] = shown[TRUST] = "ANY"
            return shown
        shown[FENCE] = "FENCE" if entry[FENCE] == int(state[b"fence"]) else "ANOTHER FENCE"
        shown[AFTER_FENCE] = "FENCE" if entry[AFTER_FENCE] == entry[FENCE] else "ANOTHER FENCE"
        for position in (NUMBER, AFTER_NUMBER):
            shown[position] = self._number(entry[position], prefix, stream)
        return shown

    def _number(self, number: int, prefix: str, stream: str) -> str:
        entries = self._logs[f"{prefix}log"][stream]
        return f"NUMBER + {number - entries[_first_with_blocks(entries) - 1][NUMBER]}"


def _first_with_blocks(entries: list[Entry]) -> int:
    return next((position for position, entry in enumerate(entries) if entry[BLOCK_SIZE] is not None), len(entries))


def _string(value: bytes) -> Any:
    """A random value, or a load: when it was measured, a blank, and msgpack."""
    time, blank, load = value.partition(b" ")
    return ["TIME", msgspec.msgpack.decode(load)] if blank and time.isdigit() else _name(value)


def _text(value: bytes) -> Any:
    return msgspec.json.decode(value) if value[:1] in (b"[", b"{") else _name(value)


def _name(value: bytes) -> str:
    text = value.decode()
    return "RANDOM" if RANDOM.fullmatch(text) else "MEMBER" if MEMBER.fullmatch(text) else text


def _parked(value: bytes) -> Any:
    parent, tokens, extra, since_ms, *more = _hexed(msgspec.msgpack.decode(value))
    assert since_ms > TIME_MIN
    return [parent, tokens, extra, "TIME", *more]


def _hexed(value: Any) -> Any:
    """In JSON: bytes in hexadecimal digits."""
    if isinstance(value, dict):
        return {str(key): _hexed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_hexed(entry) for entry in value]
    return value.hex() if isinstance(value, bytes) else value
