"""Ports that stay a server's own while it is away.

The system takes the near end of every outgoing connection from its ephemeral ports. A server's port among them can be taken while the server
is down, even by a client that tries to reach it and, in doing so, connects to itself.
"""

import random
import socket

LOWEST, HIGHEST = 20_000, 32_000
"""Below the ephemeral ports of Linux (from 32,768) and of everybody else (from 49,152)."""

_random = random.SystemRandom()


def free_port(lowest: int = LOWEST, highest: int = HIGHEST) -> int:
    """A port of 127.0.0.1 that nothing listens on now. Somebody else may take it before you do."""
    while True:
        port = _random.randint(lowest, highest)
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether nothing listens on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
