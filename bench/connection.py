"""Asking over one kept connection at the least cost to the asker: prepared bytes out, and only the answer's length is read."""

import socket
from types import TracebackType
from typing import Self

import msgspec

from bench.workload import MODEL

TIMEOUT_S = 30.0
HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length: "
RECEIVE_BYTES = 65_536


def prepare(media_type: str, tokens: list[int], path: str = "/v1/score", **more: object) -> bytes:
    """A request as it goes over the wire: a JSON list, or packed tokens in msgpack, and `more` fields. The answer comes in the same type."""
    if media_type == "json":
        body = msgspec.json.encode({"model": MODEL, "token_ids": tokens, **more})
    else:
        packed = b"".join(token.to_bytes(4, "little") for token in tokens)
        body = msgspec.msgpack.encode({"model": MODEL, "token_ids": packed, **more})
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/{media_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """`with Connection(host, port) as connection: connection.ask(request)`."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> bytes:
        """The body of the answer. Raises RuntimeError for any other status than 200."""
        self._socket.sendall(request)
        answer = self._receive()
        while (end := answer.find(HEAD_END)) < 0:
            answer += self._receive()
        head = answer[:end].lower()
        start = head.index(LENGTH) + len(LENGTH)
        length = int(head[start:].partition(b"\r\n")[0])
        body = answer[end + len(HEAD_END) :]
        while len(body) < length:
            body += self._receive()
        if not head.startswith(b"http/1.1 200 "):
            raise RuntimeError(f"the service answered {answer!r}")
        return body

    def _receive(self) -> bytes:
        received = self._socket.recv(RECEIVE_BYTES)
        if not received:
            raise RuntimeError("the service closed the connection")
        return received
