"""A call of gRPC: how messages are put together from pieces, what is held meanwhile, and what ends it."""

import asyncio

import pytest

from indexer.http.body_room import BodyRoom
from scorer_api.gateway.grpc_call import GrpcCall, StatusError, trailers_of

ROOM = 1_000
LONGEST = 200


class Peer:
    """The stream of a call: what was acknowledged, and what was sent."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.sent = b""

    def acknowledge(self, size: int) -> None:
        self.acknowledged += size

    async def send(self, data: bytes) -> None:
        self.sent += data


def begin(room: BodyRoom | None = None) -> tuple[Peer, GrpcCall]:
    peer = Peer()
    headers = [(b":path", b"/x"), (b"grpc-timeout", b"1S"), (b"authorization", b"Bearer t"), (b"x-id-bin", b"AAE"), (b"x-odd-bin", b"\xff")]
    return peer, GrpcCall(peer, headers, room or BodyRoom(ROOM), LONGEST)


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


async def taken(call: GrpcCall) -> list[bytes]:
    return [message async for message in call]


@pytest.mark.parametrize("step", [1, 2, 5, 7, 1_000])
async def test_messages_are_put_together_from_pieces_of_any_length(step: int) -> None:
    room = BodyRoom(ROOM)
    peer, call = begin(room)
    messages = [b"", b"a", b"bc" * 20, b"", b"d" * LONGEST]
    data = b"".join(map(framed, messages))
    for start in range(0, len(data), step):
        call.receive(data[start : start + step], len(data[start : start + step]))
    call.end()
    assert await taken(call) == messages
    assert peer.acknowledged == len(data)
    assert room.bytes_left == ROOM


async def test_many_messages_of_one_frame_come_in_turns() -> None:
    room = BodyRoom(ROOM)
    peer, call = begin(room)
    messages = [bytes([number]) for number in range(100)]
    call.receive(b"".join(map(framed, messages)), 600)
    assert peer.acknowledged == 0
    call.receive(framed(b"z"), 6)
    call.end()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert await taken(call) == [*messages, b"z"]
    task.cancel()
    assert turns == 6  # after each 16
    assert peer.acknowledged == 606
    assert room.bytes_left == ROOM


async def test_a_handler_that_waits_is_woken_by_a_message_and_by_the_end() -> None:
    _, call = begin()
    task = asyncio.create_task(taken(call))
    await asyncio.sleep(0)
    call.receive(framed(b"a"), 6)
    await asyncio.sleep(0)
    call.end()
    assert await task == [b"a"]


async def test_the_window_opens_for_a_part_of_a_message_and_not_for_messages_that_nobody_takes() -> None:
    peer, call = begin()
    call.receive(framed(b"abc")[:6], 6)
    assert peer.acknowledged == 6
    call.receive(b"bc" + framed(b"d"), 8)
    assert peer.acknowledged == 6
    assert [await anext(call), peer.acknowledged] == [b"abc", 6]
    assert [await anext(call), peer.acknowledged] == [b"d", 14]


@pytest.mark.parametrize(
    ("data", "code", "what"),
    [
        (framed(b"z", flag=1), "UNIMPLEMENTED", "compressed"),
        (b"\0\0\0\0\xc9", "RESOURCE_EXHAUSTED", "201 bytes; at most 200"),
        (b"\0\xff\xff\xff\xff", "RESOURCE_EXHAUSTED", "4294967295 bytes"),
    ],
)
async def test_what_is_no_message_ends_the_call_after_those_before(data: bytes, code: str, what: str) -> None:
    room = BodyRoom(ROOM)
    _, call = begin(room)
    call.receive(framed(b"a") + data, 20)
    call.receive(b"more", 4)
    assert await anext(call) == b"a"
    with pytest.raises(StatusError, match=what) as error:
        await anext(call)
    assert error.value.code == code
    assert room.bytes_left == ROOM


async def test_what_all_calls_hold_is_bounded_and_given_back() -> None:
    room = BodyRoom(300)
    _, first = begin(room)
    other, second = begin(room)
    first.receive(framed(b"x" * 200)[:-1], 204)
    second.receive(framed(b"y" * 150), 155)
    assert other.acknowledged == 155
    with pytest.raises(StatusError, match="no room") as error:
        await anext(second)
    assert error.value.code == "RESOURCE_EXHAUSTED"
    first.close()
    assert room.bytes_left == 300


async def test_a_reset_cancels_the_handler() -> None:
    room = BodyRoom(ROOM)
    peer, call = begin(room)
    call.task = asyncio.create_task(asyncio.sleep(60))
    call.receive(framed(b"abc"), 8)
    call.end()
    call.reset()
    with pytest.raises(asyncio.CancelledError):
        await call.task
    assert room.bytes_left == ROOM
    assert peer.acknowledged == 8  # the connection's window is that of other calls, too


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_reset_ends_a_handler_in_good_order_that_waits(is_told: bool) -> None:
    """Envoy ends its calls so, with and without the end before it."""
    _, call = begin()
    seen = []

    async def handle() -> None:
        seen.extend(await taken(call))
        seen.append(b"ended")

    call.task = asyncio.create_task(handle())
    await asyncio.sleep(0)
    if is_told:
        call.end()
    call.reset()
    await call.task
    assert seen == [b"ended"]


async def test_headers_and_messages_that_are_written() -> None:
    peer, call = begin()
    assert call.metadata == [("authorization", "Bearer t"), ("x-id-bin", b"\0\x01"), ("x-odd-bin", b"")]
    await call.write(b"ab")
    await call.write(b"")
    assert peer.sent == b"\0\0\0\0\2ab\0\0\0\0\0"


def test_how_a_call_ends() -> None:
    assert trailers_of(None) == [(b"grpc-status", b"0")]
    found = dict(trailers_of(StatusError("INVALID_ARGUMENT", "ü: 5 %\n", b"\0\1")))
    assert found == {b"grpc-status": b"3", b"grpc-message": b"%C3%BC: 5 %25%0A", b"grpc-status-details-bin": b"AAE"}
