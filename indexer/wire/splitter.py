"""Splitting a batch into its events without recursion, for payloads that are nested too deeply for the decoder; and a list into what of it is whole.

The decoder gives up on a whole batch when one event in it is nested too deeply, even where it would only skip it. This finds where each
event ends by counting the items that are still to come, so depth costs nothing.
"""

from indexer.core.event_pieces import Steps, result_of

# Number of items that are examined; a hostile payload of millions costs no more than that (some tenths of a second).
ITEMS_MAX = 500_000
# So many of them are examined in one step.
STEP_ITEMS_MAX = 8_192

# First byte → bytes that follow it, for types without a length field.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_FIXED |= {0xD4 + power: 1 + 2**power for power in range(5)}
# First byte → (bytes of the length, bytes behind it that the length does not count).
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
# First byte → (bytes of the count, items per count).
_NESTING = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def split_events(payload: bytes) -> Steps[list[bytes]]:
    """The events of a batch in array form, `[time stamp, [event, …], …]`, still encoded. Raises ValueError for anything else."""
    splitter = _Splitter(payload)
    if splitter.array() < 2:
        raise ValueError("a batch has a time stamp and events")
    yield from splitter.skip()
    events = []
    for _ in range(splitter.array()):
        start = splitter.at
        yield from splitter.skip()
        events.append(payload[start : splitter.at])
    return events


def split_list(content: bytes) -> tuple[list[bytes], int]:
    """The whole items of a list, still encoded, and how many bytes of something cut short follow them.

    How many items the list says it has does not matter: the writer may have ended before it knew that. Raises ValueError for what
    is no list.
    """
    splitter = _Splitter(content, len(content))
    splitter.array()
    items: list[bytes] = []
    while (start := splitter.at) < len(content):
        try:
            result_of(splitter.skip())
        except ValueError:
            return items, len(content) - start
        items.append(content[start : splitter.at])
    return items, 0


class _Splitter:
    """A place in a payload. Raises ValueError behind its end."""

    def __init__(self, payload: bytes, items_max: int = ITEMS_MAX) -> None:
        self._payload = payload
        self._left = items_max
        self.at = 0

    def array(self) -> int:
        """Step into an array. Returns how many items it has."""
        first = self._byte()
        if first >> 4 == 0x9:
            return first & 0x0F
        if first in (0xDC, 0xDD):
            return self._number(_NESTING[first][0])
        raise ValueError("not an array")

    def skip(self) -> Steps[None]:
        """Step over one item, with all that is in it."""
        pending = 1
        while pending:
            self._left -= 1
            if self._left < 0:
                raise ValueError("too many items")
            pending += self._step() - 1
            if self._left % STEP_ITEMS_MAX == 0:
                yield

    def _step(self) -> int:
        """Step over one item's own bytes. Returns how many items are in it."""
        first = self._byte()
        if first < 0x80 or first >= 0xE0:
            return 0
        if first < 0xA0:
            return (first & 0x0F) * (2 if first < 0x90 else 1)
        if first < 0xC0:
            self._move(first & 0x1F)
        elif first in _FIXED:
            self._move(_FIXED[first])
        elif first in _SIZED:
            width, more = _SIZED[first]
            self._move(self._number(width) + more)
        elif first in _NESTING:
            width, items = _NESTING[first]
            return self._number(width) * items
        else:
            raise ValueError("not msgpack")
        return 0

    def _byte(self) -> int:
        self._move(1)
        return self._payload[self.at - 1]

    def _number(self, width: int) -> int:
        self._move(width)
        return int.from_bytes(self._payload[self.at - width : self.at], "big")

    def _move(self, count: int) -> None:
        self.at += count
        if self.at > len(self._payload):
            raise ValueError("cut short")
