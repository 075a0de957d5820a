"""Large payloads and large events taken apart in steps: where their items end is found by the compiled core, a piece at a time.

msgspec goes through all of a payload in one call. That takes 2 ns for each item, also for those that it skips: 60 ms for 32 MiB of tiny ones.
"""

from collections.abc import Container, Iterator

from msgspec import Raw, Struct

from indexer.compiled import core
from indexer.core.event_pieces import Steps
from indexer.wire.outline import ARRAY_HEADER_BYTES_MAX, array_header

# The parts of what is larger are found in steps; msgspec finds those of what is not.
SPLIT_BYTES_MIN = 4 * 2**20
# So many items, or bytes of them, are stepped over in one step.
STEP_ITEMS = 2**20
# Of a map with more fields nothing is read: no engine sends them.
FIELDS_MAX = 1_024
# Fields that are looked at in one step.
STEP_FIELDS = 128


class Fields(Struct):
    """Fields of a map by their names, or the first items of an array by the numbers of their positions, still encoded. `count`: how many there are in
    all. `end`: the position behind them."""

    known: dict[str | int, Raw]
    count: int
    end: int


def split_fields(encoded: Raw | bytes, names: Container[bytes], items_max: int) -> Steps[Fields]:
    """The fields with these names, of which the last one of a name counts; or the first `items_max` items. Raises ValueError for what is neither."""
    start = memoryview(encoded)[:ARRAY_HEADER_BYTES_MAX].tobytes()
    if (header := array_header(start)) is not None:
        count, begin = header
        if begin > len(encoded):
            raise ValueError("cut short")
        ends = [begin]
        end = yield from _split(encoded, begin, min(count, items_max), ends)
        if count > items_max:
            end = yield from _split(encoded, end, 1, [], pending=count - items_max)
        return Fields(dict(enumerate(items_of(encoded, ends))), count, end)
    if (header := _map_header(start)) is None:
        raise ValueError("neither an array nor a map")
    count, end = header
    if end > len(encoded) or count > FIELDS_MAX:
        raise ValueError("cut short, or too many fields")
    fields = Fields({}, count, end)
    while count:
        ends = [fields.end]
        some = min(count, STEP_FIELDS)
        fields.end = yield from _split(encoded, fields.end, 2 * some, ends)
        items = items_of(encoded, ends)
        for key, value in zip(items, items, strict=True):
            if (name := _text(key)) in names:
                fields.known[name.decode()] = value
        count -= some
    return fields


def split_array(encoded: Raw | bytes) -> Steps[list[int]]:
    """Where the first item of an array begins, and where each ends. Raises ValueError. How many there are the caller has seen in the header."""
    header = array_header(memoryview(encoded)[:ARRAY_HEADER_BYTES_MAX].tobytes())
    if header is None:
        raise ValueError("not an array")
    count, begin = header
    ends = [begin]
    yield from _split(encoded, begin, count, ends)
    return ends


def items_of(encoded: Raw | bytes, ends: list[int]) -> Iterator[Raw]:
    """The items, still encoded. `ends`: see `split_array`."""
    view, begin = memoryview(encoded), ends[0]
    for end in ends[1:]:
        yield Raw(view[begin:end])
        begin = end


def _split(encoded: Raw | bytes, at: int, count: int, ends: list[int], pending: int = 0) -> Steps[int]:
    """Returns the position behind the items."""
    while count:
        at, pending, count = core.split_msgpack(encoded, at, pending, count, STEP_ITEMS, ends)
        if count:
            yield
    return at


def _map_header(start: bytes) -> tuple[int, int] | None:
    """How many fields an encoded map has, and how many bytes its header; None for anything else."""
    first = start[0] if start else 0
    if first >> 4 == 0x8:
        return first & 0x0F, 1
    if first in (0xDE, 0xDF):
        size = 2 if first == 0xDE else 4
        return int.from_bytes(start[1 : 1 + size], "big"), 1 + size
    return None


def _text(encoded: Raw) -> bytes:
    """The text that this encodes. Raises ValueError for anything else, as no field has such a name."""
    first = memoryview(encoded)[0]
    if first >> 5 == 0b101:
        return memoryview(encoded)[1:].tobytes()
    if first in (0xD9, 0xDA, 0xDB):
        return memoryview(encoded)[1 + 2 ** (first - 0xD9) :].tobytes()
    raise ValueError("not a text")
