"""Where pieces of what comes end, and frames that are too long, by their heads alone."""

import h2.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer_api.gateway.http2 import FRAME_WORK, PIECE_WORK, FrameHeads

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, size: int) -> bytes:
    return size.to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]) + bytes(size)


def ends(data: bytes, cuts: list[int]) -> list[int]:
    """Where pieces end in all that comes, if it comes in parts that are cut there."""
    heads, found, start = FrameHeads(), [], 0
    for stop in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        part, at = data[start:stop], 0
        while at < len(part):
            at = heads.piece_end(part, at)
            found.append(start + at)
        start = stop
    return found


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2_000)), max_size=30), st.lists(st.integers(0, 100_000), max_size=5))
def test_pieces_follow_one_another_wherever_what_comes_is_cut(frames: list[tuple[int, int]], cuts: list[int]) -> None:
    data = PREFACE + b"".join(frame(kind, size) for kind, size in frames)
    found = ends(data, cuts)
    assert found == sorted(set(found))
    assert found[-1] == len(data)


def test_a_piece_has_few_frames_and_many_bytes_of_data() -> None:
    most = PIECE_WORK // FRAME_WORK
    assert ends(PREFACE + frame(6, 8) * 1_000, [])[0] < len(PREFACE) + most * 17
    assert ends(PREFACE + frame(0, 16_384) * 20, []) == [len(PREFACE) + 20 * 16_393]
    assert ends(PREFACE + frame(4, 6) * 3, []) == [len(PREFACE) + 15 * count for count in (1, 2, 3)]
    first, *_ = ends(PREFACE + frame(1, 1_000) * 10, [])
    assert first == len(PREFACE) + 3 * 1_009


@pytest.mark.parametrize("cut", range(9))
@pytest.mark.parametrize("head", [b"\x00\x40\x01\x01\x00\x00\x00\x00\x01", b"\x04\x00\x01\x00\x00\x00\x00\x00\x01"], ids=["headers", "data"])
def test_a_frame_that_is_too_long_is_seen_by_its_head(head: bytes, cut: int) -> None:
    heads = FrameHeads()
    start = PREFACE + frame(0, 16_384) + head[:cut]
    at = 0
    while at < len(start):
        at = heads.piece_end(start, at)
    with pytest.raises(h2.exceptions.FrameTooLargeError):
        heads.piece_end(head[cut:], 0)
