"""A TCP connection that can be cut without either side's process noticing anything else, or that is slow."""

import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Self

# So small that connections that share a slow way have their turns.
SLOW_PIECE_BYTES = 1024


class Proxy:
    """Forwards connections to a port of this machine until they are cut; new ones are taken again.

    `bytes_per_s`: what all of them carry to it together; answers come at once.
    """

    def __init__(self, port: int, bytes_per_s: float | None = None) -> None:
        self._target = port
        self.bytes_per_s = bytes_per_s
        self._clients: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._bell, self._commands = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._commands, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bell.send(b"q")
        self._thread.join()
        for opened in (self._listener, self._bell, self._commands, self._selector):
            opened.close()

    def cut(self) -> None:
        """Close every connection there is."""
        self._bell.send(b"c")
        self._bell.recv(1)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                ready = key.fileobj
                if ready is self._listener:
                    self._accept()
                elif ready is self._commands:
                    command = self._commands.recv(1)
                    for client in list(self._peers):
                        self._close(client)
                    if command == b"q":
                        return
                    self._commands.send(b"d")
                elif isinstance(ready, socket.socket) and ready in self._peers:
                    self._forward(ready)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        self._clients.add(client)
        for end, other in ((client, server), (server, client)):
            self._peers[end] = other
            self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, ready: socket.socket) -> None:
        try:
            is_slow = self.bytes_per_s is not None and ready in self._clients
            data = ready.recv(SLOW_PIECE_BYTES if is_slow else 65536)
            if data:
                if self.bytes_per_s is not None and is_slow:
                    time.sleep(len(data) / self.bytes_per_s)
                self._peers[ready].sendall(data)
                return
        except OSError:
            pass
        self._close(ready)

    def _close(self, end: socket.socket) -> None:
        other = self._peers.pop(end, None)
        if other is None:
            return
        del self._peers[other]
        self._clients -= {end, other}
        for gone in (end, other):
            self._selector.unregister(gone)
            gone.close()
