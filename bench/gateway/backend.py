"""A pod behind Envoy in measurements: it answers at once, and says which tokens a prompt has. One process, which uses one core."""

import asyncio
import re
from multiprocessing.connection import Connection
from typing import Self, cast

import msgspec
import uvloop

from bench.child import Child
from bench.workload import prompt_tokens

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
CHUNKS_END = b"\r\n0\r\n\r\n"
PROMPT = re.compile(r"seed (\d+) blocks (\d+) ")


def prompt_of(seed: int, blocks: int, size: int) -> str:
    """A text of so many bytes whose tokens are `prompt_tokens(seed, blocks)`."""
    return f"seed {seed} blocks {blocks} ".ljust(size, "x")


class Backend(Child):
    """`with Backend() as pod:` it listens at `pod.port`."""

    def __init__(self) -> None:
        super().__init__("backend", _serve)

    def __enter__(self) -> Self:
        self.port: int = self.connection.recv()
        return self


class _Requests(asyncio.Protocol):
    """One connection, whose requests come one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's own, which is none by type
        self._received = bytearray()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(HEAD_END)
        if end < 0 or not self._is_whole(end):
            return
        request = bytes(self._received)
        self._received.clear()
        self._transport.write(_tokens(request[end:]) if request.startswith(b"POST /tokenize ") else ANSWER)

    def _is_whole(self, end: int) -> bool:
        if (length := LENGTH.search(self._received, 0, end)) is not None:
            return len(self._received) >= end + len(HEAD_END) + int(length[1])
        return not self._received.startswith(b"POST ") or self._received.endswith(CHUNKS_END)


def _tokens(body: bytes) -> bytes:
    found = PROMPT.search(body.decode())
    tokens = [] if found is None else prompt_tokens(int(found[1]), int(found[2]))
    content = msgspec.json.encode({"tokens": tokens, "count": len(tokens), "max_model_len": 2**20})
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content) + content


def _serve(connection: Connection) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Requests, "127.0.0.1", 0)
        connection.send(server.sockets[0].getsockname()[1])
        ended = asyncio.Event()
        loop.add_reader(connection.fileno(), ended.set)
        await ended.wait()
        server.close()

    uvloop.run(serve())
