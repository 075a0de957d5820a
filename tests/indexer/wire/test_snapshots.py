"""Replies to a request for a snapshot, frame by frame."""

import msgspec
import pytest

from indexer.core.events import Event, Removed, Stored, Tier
from indexer.errors import Refused
from indexer.wire.snapshots import AT_OWN_ENDPOINT, ON_REPLAY_SOCKET, SnapshotReading, UnavailableError

END = [b"", b"", b"\xff" * 8, b""]


def part(resume: int, payload: bytes) -> list[bytes]:
    return [b"", b"kv@pod@m", resume.to_bytes(8, "big"), payload]


def reading(bytes_max: int = 100) -> SnapshotReading:
    return SnapshotReading(ON_REPLAY_SOCKET, bytes_max)


def payloads(found: SnapshotReading, frames: list[bytes]) -> list[bytes | None]:
    """Those of one reply; None for the end."""
    return [None if part is None else found.read(part) for part in found.parts(frames)]


def test_the_request_has_the_length_of_a_number() -> None:
    assert ON_REPLAY_SOCKET.request == b"snapshot"
    assert len(ON_REPLAY_SOCKET.request) == 8


def test_parts_are_read_in_their_order_to_the_end() -> None:
    found = reading()
    assert found.resume is None
    assert [payloads(found, part(7, payload)) for payload in (b"a", b"b")] == [[b"a"], [b"b"]]
    assert found.resume == 7
    assert payloads(found, END) == [None]


def test_an_end_alone_is_no_snapshot() -> None:
    found = reading()
    assert (payloads(found, END), found.resume) == ([None], None)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"", b"x"], "frame_count"),
        ([b"", b"", b"\0" * 7, b"x"], "frame_sequence"),
        (part(8, b"x"), "frame_sequence"),  # another resume than before
        (part(7, b"x" * 100), "snapshot_size"),
    ],
)
def test_what_is_no_part_of_it_is_refused(frames: list[bytes], reason: str) -> None:
    found = reading()
    payloads(found, part(7, b"x"))
    with pytest.raises(Refused, match=reason):
        payloads(found, frames)


def test_the_bytes_of_all_parts_count() -> None:
    found = reading(10)
    for _ in range(5):
        assert payloads(found, part(0, b"ab")) == [b"ab"]
    with pytest.raises(Refused, match="snapshot_size"):
        payloads(found, part(0, b"c"))


PUBLISHER = bytes(range(16))


def whole(last: int, *parts: bytes) -> list[bytes]:
    """A reply of an endpoint of its own."""
    return [b"", last.to_bytes(8, "big", signed=True), PUBLISHER, *parts]


def test_one_message_has_all_parts_and_the_end() -> None:
    found = SnapshotReading(AT_OWN_ENDPOINT, 100)
    assert payloads(found, whole(41, b"a", b"b")) == [b"a", b"b", None]
    assert found.resume == 42


def test_one_without_blocks_begins_all_the_same() -> None:
    found = SnapshotReading(AT_OWN_ENDPOINT, 100)
    payload, end = payloads(found, whole(-1))
    assert payload is not None
    assert (msgspec.msgpack.decode(payload), end, found.resume) == ([0.0, [], None], None, 0)


def test_an_engine_may_have_none_at_present() -> None:
    with pytest.raises(UnavailableError):
        AT_OWN_ENDPOINT.parts(whole(-2))


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"", b"x" * 8], "frame_count"),
        ([b"x", b"x" * 8, PUBLISHER], "frame_count"),
        ([b"", b"x" * 7, PUBLISHER], "frame_sequence"),
        ([b"", b"x" * 8, PUBLISHER[1:], b"payload"], "frame_sequence"),
        (whole(1, b"x" * 99, b"x" * 2), "snapshot_size"),
    ],
)
def test_a_message_that_is_no_snapshot_is_refused(frames: list[bytes], reason: str) -> None:
    found = SnapshotReading(AT_OWN_ENDPOINT, 100)
    with pytest.raises(Refused, match=reason):
        payloads(found, frames)


@pytest.mark.parametrize(("counts_copies", "kept"), [(True, [True, True, True, True, False]), (False, [True, True, True, False, False])])
def test_what_is_taken_away_again_is_passed_over_where_one_copy_counts(counts_copies: bool, kept: list[bool]) -> None:
    """Once the copies are announced, of which a tier below the gpu counts one."""

    def stored(tokens: bytes, tier: Tier) -> Event:
        return Stored([1], None, tokens, 1 if tokens else 0, tier, None, None, True, None, None)

    events = [
        *(stored(b"toke", Tier.GPU), Removed([9], Tier.CPU, None), stored(b"", Tier.GPU)),
        *(Removed([1], Tier.GPU, None), Removed([2], Tier.CPU, None)),
    ]
    keeps = AT_OWN_ENDPOINT.filter(counts_copies=counts_copies)
    assert list(map(keeps, events)) == kept
