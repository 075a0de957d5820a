"""The frames of live messages and of replies to a replay."""

import pytest

from indexer.errors import Refused
from indexer.wire.frames import split_frames, split_reply


def test_a_live_message_has_topic_sequence_and_payload() -> None:
    assert split_frames([b"kv@pod@m", b"\0\0\0\0\0\0\1\2", b"payload"]) == (258, b"payload")
    assert split_frames([b"", b"\xff" * 7 + b"\xfe", b""]) == (2**64 - 2, b"")


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "frame_count"),
        ([b"\0" * 8, b"payload"], "frame_count"),
        ([b"", b"", b"\0" * 8, b"payload"], "frame_count"),
        ([b"", b"\0" * 7, b"payload"], "frame_sequence"),
        ([b"", b"\0" * 9, b"payload"], "frame_sequence"),
        ([b"", b"", b"payload"], "frame_sequence"),
        ([b"", b"\xff" * 8, b""], "frame_sequence"),
    ],
)
def test_a_live_message_of_another_shape_is_refused(frames: list[bytes], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        split_frames(frames)
    assert refused.value.reason == reason


def test_a_reply_is_read_with_and_without_its_topic() -> None:
    assert split_reply([b"", b"\0\0\0\0\0\0\0\5", b"payload"]) == (5, b"payload")
    assert split_reply([b"", b"topic", b"\0\0\0\0\0\0\0\5", b"payload"]) == (5, b"payload")


def test_a_payload_like_the_end_marker_is_still_a_reply() -> None:
    assert split_reply([b"", b"\0" * 8, b"\xff" * 8]) == (0, b"\xff" * 8)


@pytest.mark.parametrize("frames", [[b"", b"\xff" * 8, b""], [b"", b"", b"\xff" * 8, b""]])
def test_the_end_of_a_replay_is_known_in_both_shapes(frames: list[bytes]) -> None:
    assert split_reply(frames) is None


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "frame_count"),
        ([b"\0" * 8, b"payload"], "frame_count"),
        ([b"", b"", b"", b"\0" * 8, b"payload"], "frame_count"),
        ([b"", b"\0" * 7, b"payload"], "frame_sequence"),
        ([b"", b"topic", b"", b"payload"], "frame_sequence"),
    ],
)
def test_a_reply_of_another_shape_is_refused(frames: list[bytes], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        split_reply(frames)
    assert refused.value.reason == reason
