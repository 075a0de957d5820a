"""Replies to a request for a snapshot, frame by frame."""

import pytest

from indexer.errors import Refused
from indexer.wire.snapshots import DIALECTS, SnapshotReading

END = [b"", b"", b"\xff" * 8, b""]


def part(resume: int, payload: bytes) -> list[bytes]:
    return [b"", b"kv@pod@m", resume.to_bytes(8, "big"), payload]


def reading(bytes_max: int = 100) -> SnapshotReading:
    return SnapshotReading(DIALECTS["replay"], bytes_max)


def test_the_request_has_the_length_of_a_number() -> None:
    assert DIALECTS["replay"].request == b"snapshot"
    assert len(DIALECTS["replay"].request) == 8


def test_parts_are_read_in_their_order_to_the_end() -> None:
    found = reading()
    assert found.resume is None
    assert [found.read(part(7, payload)) for payload in (b"a", b"b")] == [b"a", b"b"]
    assert found.resume == 7
    assert found.read(END) is None


def test_an_end_alone_is_no_snapshot() -> None:
    found = reading()
    assert (found.read(END), found.resume) == (None, None)


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
    found.read(part(7, b"x"))
    with pytest.raises(Refused, match=reason):
        found.read(frames)


def test_the_bytes_of_all_parts_count() -> None:
    found = reading(10)
    for _ in range(5):
        assert found.read(part(0, b"ab")) == b"ab"
    with pytest.raises(Refused, match="snapshot_size"):
        found.read(part(0, b"c"))
