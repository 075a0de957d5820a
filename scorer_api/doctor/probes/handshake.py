"""The handshake of a ZMQ connection (ZMTP 3, RFC 23). It shows what kind of socket listens, without subscribing or asking for anything.

greeting    FF 8 bytes 7F | version, 2 bytes | mechanism, 20 bytes | is server, 1 byte | 31 bytes
READY       flags, size, "\\x05READY", then properties: length of name, name, length of value (4 bytes), value
"""

import asyncio
import socket

from scorer_api.doctor.checks.observations import Handshake

SECONDS = 3.0
GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
VERSION_END = 12
COMMAND, LONG_COMMAND = 0x04, 0x06
# A READY command is short. A longer one is not read.
READY_BYTES_MAX = 4_096
RECEIVED_BYTES_MAX = 64


async def greet(endpoint: str, seconds: float = SECONDS) -> Handshake:
    """Connect to `tcp://host:port` or `ipc://path`, and find out what listens there. Never raises for what the other side does."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await _connect(endpoint)
    except TimeoutError:
        return Handshake(error=f"no connection within {seconds:g} s")
    except ConnectionRefusedError:
        return Handshake(error="the connection is refused: nothing listens there", is_refused=True)
    except socket.gaierror as error:
        return Handshake(error=f"the host's name has no address: {error.strerror}")
    except (OSError, ValueError) as error:
        return Handshake(error=f"cannot be connected to: {getattr(error, 'strerror', None) or error}")
    address = _address_of(endpoint, writer)
    received = bytearray()
    try:
        async with asyncio.timeout(seconds):
            return await _talk(reader, writer, address, received)
    except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError):
        return Handshake(address=address, received=bytes(received[:RECEIVED_BYTES_MAX]))
    finally:
        writer.transport.abort()


async def _connect(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        return await asyncio.open_unix_connection("\0" + path[1:] if path.startswith("@") else path)
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


def _address_of(endpoint: str, writer: asyncio.StreamWriter) -> str:
    """The endpoint with the address that was connected to, so that its name is not resolved again."""
    if endpoint.startswith("ipc://"):
        return endpoint
    host, port = writer.get_extra_info("peername")[:2]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, received: bytearray) -> Handshake:
    """`received` collects the bytes that arrive."""
    # Up to the version only: libzmq then sends its mechanism. It closes the connection at once if the peer sends another one.
    writer.write(GREETING[:VERSION_END])
    while len(received) < len(GREETING):
        piece = await reader.read(len(GREETING) - len(received))
        if not piece:
            raise ValueError("the other side hung up")
        received += piece
        if received[0] != 0xFF or (len(received) > 9 and not received[9] & 1):
            raise ValueError("this is no greeting")
    mechanism = bytes(received[12:32]).rstrip(b"\0").decode(errors="replace")
    if received[10] < 3 or mechanism != "NULL":
        return Handshake(address=address, is_zmq=True, mechanism=mechanism or None)
    writer.write(GREETING[VERSION_END:])
    try:
        ready = await _command(reader)
    except (TimeoutError, OSError, asyncio.IncompleteReadError, ValueError):
        return Handshake(address=address, is_zmq=True, mechanism=mechanism)
    return Handshake(address=address, is_zmq=True, mechanism=mechanism, socket_type=properties(ready).get("socket-type"))


async def _command(reader: asyncio.StreamReader) -> bytes:
    (flags,) = await reader.readexactly(1)
    if flags not in (COMMAND, LONG_COMMAND):
        raise ValueError("this is no command")
    size = int.from_bytes(await reader.readexactly(8 if flags == LONG_COMMAND else 1), "big")
    if size > READY_BYTES_MAX:
        raise ValueError("this is no READY")
    return await reader.readexactly(size)


def properties(ready: bytes) -> dict[str, str]:
    """A READY's properties, names in lower case; those that are whole."""
    found: dict[str, str] = {}
    if not ready.startswith(b"\x05READY"):
        return found
    rest = ready[6:]
    while rest:
        length = rest[0]
        name, rest = rest[1 : 1 + length], rest[1 + length :]
        size = int.from_bytes(rest[:4], "big")
        value, rest = rest[4 : 4 + size], rest[4 + size :]
        if name and len(name) == length and len(value) == size:
            found[name.decode(errors="replace").lower()] = value.decode(errors="replace")
    return found
