"""A real HTTP server that does what it is told, one thing after the other, whatever it is asked."""

import socket
import threading
from types import TracebackType
from typing import Self

Deed = bytes | None
"""An answer as it goes over the wire, or None: the connection is closed without one."""


def answer(status: int, body: bytes = b"", *headers: str) -> bytes:
    """An HTTP answer."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Faulty:
    """`with Faulty(deed, …) as server:` the last deed is done again and again. `asked`: the requests' first lines."""

    def __init__(self, *deeds: Deed) -> None:
        self._deeds = list(deeds)
        self.asked: list[str] = []

    def __enter__(self) -> Self:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                self.asked.append(_read(connection))
                deed = self._deeds.pop(0) if len(self._deeds) > 1 else self._deeds[0]
                if deed is not None:
                    connection.sendall(deed)


def _read(connection: socket.socket) -> str:
    """Read one whole request. Returns its first line."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    missing = int(fields.get(b"content-length", 0)) - len(body)
    while missing > 0:
        missing -= len(connection.recv(65536))
    return head.split(b"\r\n")[0].decode()
