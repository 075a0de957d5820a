"""ZMQ messages as engines send them: which frame is the sequence number, which the payload."""

from collections.abc import Sequence

from indexer.errors import Refused

END_OF_REPLAY = b"\xff" * 8


def split_frames(frames: Sequence[bytes]) -> tuple[int, bytes]:
    """The sequence number and the payload of one live message, `[topic, sequence, payload]`.

    Raises Refused.
    """
    if len(frames) != 3:
        raise Refused("frame_count")
    if len(frames[1]) != 8 or frames[1] == END_OF_REPLAY:
        raise Refused("frame_sequence")
    return int.from_bytes(frames[1], "big"), frames[2]


def split_reply(frames: Sequence[bytes]) -> tuple[int, bytes] | None:
    """The sequence number and the payload of one reply of a replay; None for the end marker.

    Both shapes, with the topic and without it, are read from the end. Raises Refused.
    """
    if len(frames) not in (3, 4):
        raise Refused("frame_count")
    if frames[-2] == END_OF_REPLAY:
        return None
    if len(frames[-2]) != 8:
        raise Refused("frame_sequence")
    return int.from_bytes(frames[-2], "big"), frames[-1]
