"""The bytes of one connection in, messages out."""

import random
import tracemalloc
from typing import Any

import pytest

from indexer.receiving import zmtp as zmtp_module
from indexer.receiving.zmtp import (
    COMMAND,
    COMMAND_BYTES_MAX,
    FRAME_OVERHEAD,
    GREETING,
    LONG,
    MESSAGE_OVERHEAD,
    MORE,
    PIECE_BYTES,
    PING_SENT,
    PONG,
    READY,
    UNSENT_BYTES_MAX,
    Zmtp,
    ZmtpError,
    frame,
    message,
    subscription,
)

MIB = 2**20
FRAME_BYTES_MAX = MIB


def ready(socket_type: bytes = b"PUB", name: bytes = b"Socket-Type") -> bytes:
    return frame(READY + bytes([len(name)]) + name + len(socket_type).to_bytes(4) + socket_type, COMMAND)


def fresh(frame_bytes_max: int = FRAME_BYTES_MAX) -> Zmtp:
    return Zmtp(b"SUB", {b"PUB", b"XPUB"}, frame_bytes_max)


def shaken(frame_bytes_max: int = FRAME_BYTES_MAX) -> Zmtp:
    """After the handshake."""
    zmtp = fresh(frame_bytes_max)
    zmtp.receive(GREETING + ready())
    assert zmtp.messages(9) == []
    assert zmtp.is_ready
    zmtp.outgoing.clear()
    return zmtp


def read(zmtp: Zmtp, count_max: int = 10**6) -> list[list[bytes]]:
    found = zmtp.messages(count_max)
    while zmtp.is_cut:
        found += zmtp.messages(count_max)
    return found


def test_two_sides_of_ours_understand_each_other() -> None:
    sub, pub = fresh(), Zmtp(b"PUB", {b"SUB"}, FRAME_BYTES_MAX)
    for one, other in ((sub, pub), (pub, sub)):
        other.receive(bytes(one.outgoing))
        assert read(other) == []
    assert (sub.is_ready, pub.is_ready) == (True, True)
    pub.receive(subscription(b"kv"))
    assert read(pub) == [[b"\x01kv"]]


@pytest.mark.parametrize("large", [200, 20_000, 10**9])
def test_messages_are_the_same_however_they_are_cut(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    """`large`: from so many bytes on a frame is put together as it comes."""
    monkeypatch.setattr(zmtp_module, "LARGE_BYTES_MIN", large)
    rng = random.Random(1)
    sent = [[rng.randbytes(rng.choice((0, 1, 255, 256, rng.randrange(3 * PIECE_BYTES)))) for _ in range(rng.randrange(1, 5))] for _ in range(200)]
    stream = b"".join(message(*parts) for parts in sent)
    for most in (1, 100, PIECE_BYTES, 10 * PIECE_BYTES):
        zmtp = shaken()
        found: list[list[bytes]] = []
        position = 0
        while position < (len(stream) if most > 1 else 20_000):
            size = rng.randrange(most) + 1
            zmtp.receive(stream[position : position + size])
            position += size
            if rng.random() < 0.7:
                found += read(zmtp, rng.randrange(1, 5))
        found += read(zmtp)
        assert found == sent[: len(found)]
        assert most == 1 or len(found) == len(sent)
        assert most == 1 or zmtp.pending_bytes == 0


@pytest.mark.skipif(zmtp_module.core is None, reason="there is no compiled core")
@pytest.mark.parametrize("seed", range(30))
def test_the_compiled_core_takes_the_same_messages(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Also where frames are too long, commands come in between and bytes mean nothing."""
    rng = random.Random(seed)
    sent = b""
    for _ in range(rng.choice([3, 200])):
        parts = [rng.randbytes(rng.choice([0, 1, 8, 255, 256, 3_000])) for _ in range(rng.choice([1, 3, 3, 3, 4, 5, 9]))]
        sent += message(*parts)
        if rng.random() < 0.05:
            sent += frame(PING_SENT, COMMAND)
        elif rng.random() < 0.02:
            sent += rng.choice([bytes([LONG]) + rng.choice([0, 300, FRAME_BYTES_MAX + 1, 2**63, 2**64 - 1]).to_bytes(8), rng.randbytes(9)])
    pieces, start = [], 0
    while start < len(sent):
        size = rng.choice([1, 7, 100, 5_000, len(sent)])
        pieces.append(sent[start : start + size])
        start += size
    count_max = rng.choice([1, 5, 512])

    def said(zmtp: Zmtp) -> Any:
        found: list[Any] = []
        try:
            for piece in pieces:
                zmtp.receive(piece)
                while True:
                    found.append((zmtp.messages(count_max), zmtp.is_cut, zmtp.pending_bytes, zmtp.wanted_bytes, bytes(zmtp.outgoing)))
                    if not zmtp.is_cut:
                        break
        except ZmtpError as error:
            found.append(str(error))
        return found

    taken = said(shaken())
    monkeypatch.setattr(zmtp_module, "core", None)
    assert taken == said(shaken())


def test_a_long_frame_is_put_together_as_it_comes_and_not_copied_at_its_end() -> None:
    zmtp, content = shaken(8 * MIB), bytes(8 * MIB)
    sent = message(b"topic", bytes(8), content) + message(b"next")
    tracemalloc.start()
    try:
        for start in range(0, len(sent), 65_536):
            assert read(zmtp) == []
            assert start <= zmtp.pending_bytes + 100 <= start + 1_000
            zmtp.receive(sent[start : start + 65_536])
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        found = read(zmtp)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [[b"topic", bytes(8), content], [b"next"]]
    assert peak - before < MIB
    assert (zmtp.pending_bytes, zmtp.is_amid_message) == (0, False)


def test_the_handshake_may_come_in_single_bytes() -> None:
    zmtp = fresh()
    for byte in GREETING + ready(name=b"socket-TYPE"):
        assert not zmtp.is_ready
        zmtp.receive(bytes([byte]))
        assert zmtp.messages(1) == []
    assert zmtp.is_ready


def test_so_many_messages_are_read_at_a_stretch() -> None:
    zmtp = shaken()
    zmtp.receive(message(b"x") * 5)
    assert (len(zmtp.messages(3)), zmtp.is_cut) == (3, True)
    assert (len(zmtp.messages(3)), zmtp.is_cut) == (2, False)
    assert (zmtp.messages(3), zmtp.is_cut) == ([], False)


def test_pings_are_answered_with_their_context_and_count_as_what_is_read() -> None:
    zmtp = shaken()
    zmtp.receive(frame(PING_SENT + b"context", COMMAND) * 3)
    assert (zmtp.messages(2), zmtp.is_cut) == ([], True)
    assert bytes(zmtp.outgoing) == frame(PONG + b"context", COMMAND) * 2


def test_pings_whose_answers_are_not_read_end_the_connection() -> None:
    zmtp = shaken()
    zmtp.receive(frame(PING_SENT, COMMAND) * UNSENT_BYTES_MAX)
    with pytest.raises(ZmtpError, match="not read"):
        read(zmtp)


def test_other_commands_are_passed_over() -> None:
    zmtp = shaken()
    zmtp.receive(frame(b"\x04PONG", COMMAND) + frame(b"\x09SUBSCRIBEx", COMMAND) + message(b"x"))
    assert read(zmtp) == [[b"x"]]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"HTTP/1.1 400 Bad Request", "greeting"),
        (b"\xff" + bytes(8) + b"\x7e", "greeting"),
        (b"\xff" + bytes(8) + b"\x7f\x01", "older"),
        (GREETING.replace(b"NULL\0", b"CURVE"), "mechanism"),
        (GREETING + ready(b"SUB"), "type"),
        (GREETING + frame(READY, COMMAND), "type"),
        (GREETING + frame(b"\x05READ", COMMAND), "type"),
        (GREETING + frame(b"\x05ERROR\x03no!", COMMAND), "refuses"),
        (GREETING + message(b"x"), "no place"),
        (GREETING + frame(READY + bytes(COMMAND_BYTES_MAX), COMMAND), "no place"),
    ],
)
def test_who_is_no_publisher_of_zmtp_3_is_refused(sent: bytes, why: str) -> None:
    zmtp = fresh()
    zmtp.receive(sent)
    with pytest.raises(ZmtpError, match=why):
        read(zmtp)


@pytest.mark.parametrize(
    "sent",
    [
        bytes([LONG]) + (FRAME_BYTES_MAX + 1).to_bytes(8),
        bytes([LONG]) + b"\xff" * 8,
        bytes([8, 1]) + b"x",
        bytes([COMMAND | MORE, 1]) + b"x",
        frame(b"", MORE) * ((FRAME_BYTES_MAX + MESSAGE_OVERHEAD) // FRAME_OVERHEAD + 1),
        frame(bytes(FRAME_BYTES_MAX // 2), MORE) * 5,
    ],
)
def test_what_may_not_be_sent_ends_the_connection(sent: bytes) -> None:
    zmtp = shaken()
    zmtp.receive(sent)
    with pytest.raises(ZmtpError):
        read(zmtp)


def test_a_frame_of_the_largest_size_is_taken() -> None:
    zmtp = shaken()
    zmtp.receive(message(b"topic", bytes(8), bytes(FRAME_BYTES_MAX)))
    assert [list(map(len, parts)) for parts in read(zmtp)] == [[5, 8, FRAME_BYTES_MAX]]


def test_random_bytes_raise_nothing_else() -> None:
    rng = random.Random(2)
    for seed in range(2_000):
        zmtp = shaken() if seed % 2 else fresh()
        try:
            for _ in range(20):
                zmtp.receive((GREETING if rng.random() < 0.3 else b"") + rng.randbytes(rng.randrange(100)))
                read(zmtp, 3)
        except ZmtpError:
            pass
