"""A gateway for tests, which asks a running endpoint picker over real gRPC."""

import queue
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from tests import ext_proc
from tests.ext_proc import FULL_DUPLEX, NONE, REQUEST_BODY, REQUEST_HEADERS, Reply, read_reply

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
CHECK = "/grpc.health.v1.Health/Check"
TIMEOUT_S = 30.0


class Gateway:
    """`with Gateway(port) as gateway:` one connection. `authority`: a PEM certificate that is trusted, for TLS; `name`: the one that it is for."""

    def __init__(self, port: int, authority: bytes | None = None, name: str | None = None, **options: int) -> None:
        target = f"127.0.0.1:{port}"
        more: list[tuple[str, int | str]] = [(f"grpc.{option}", value) for option, value in options.items()]
        if authority is None:
            self.channel = grpc.insecure_channel(target, more)
        else:
            more += [] if name is None else [("grpc.ssl_target_name_override", name)]
            self.channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(authority), more)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.channel.close()

    def health(self, name: str = "") -> int:
        """1: SERVING, 2: NOT_SERVING, 3: SERVICE_UNKNOWN."""
        ask = self.channel.unary_unary(CHECK)
        (status,) = ext_proc.fields_of(ask(ext_proc.message((1, name)), timeout=TIMEOUT_S, wait_for_ready=True))[1]
        return int(status)

    def call(self) -> "Call":
        return Call(self.channel.stream_stream(PROCESS))

    def pick(self, body: bytes, path: str = "/v1/completions", more: bytes = b"", **headers: str) -> Reply:
        """The first reply about a request with this body, in full duplex. The call ends as one of a client that hung up."""
        with self.call() as call:
            return call.ask(body, path, more, **headers)


class Call:
    """One call. It ends in good order with the block."""

    def __init__(self, method: Any) -> None:
        self._sent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies = method(self._messages(), timeout=TIMEOUT_S, wait_for_ready=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.end()
        else:
            self._replies.cancel()
            self._sent.put(None)

    def _messages(self) -> Iterator[bytes]:
        while (message := self._sent.get()) is not None:
            yield message

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self._sent.put(message)

    def reply(self) -> Reply:
        """The next one."""
        return read_reply(next(self._replies))

    def end(self) -> list[Reply]:
        """End the call, and read what is left."""
        self._sent.put(None)
        return [read_reply(reply) for reply in self._replies]

    def cancel(self) -> None:
        """Reset it."""
        self._replies.cancel()
        self._sent.put(None)

    def ask(self, body: bytes, path: str = "/v1/completions", more: bytes = b"", response: int = NONE, **headers: str) -> Reply:
        """The first reply about a request with this body, in full duplex."""
        given = {":path": path, "content-type": "application/json", "content-length": str(len(body))}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.send(ext_proc.headers(REQUEST_HEADERS, given, more=ext_proc.modes(FULL_DUPLEX, response) + more))
        self.send(ext_proc.body(REQUEST_BODY, body, is_end=True))
        return self.reply()
