"""The endpoint picker and the scorer over gRPC, at one port. It is imported where `--gateway-listen` is set, since it needs h2."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import aclosing
from types import TracebackType
from typing import Self

from indexer.config.settings import Settings
from indexer.errors import SettingError
from indexer.http.body_room import BodyRoom
from scorer_api.gateway.calls import Calls
from scorer_api.gateway.connection import Connections, Stream
from scorer_api.gateway.grpc_call import GrpcCall, Handler, StatusError
from scorer_api.gateway.health import CHECK, PROCESSOR, health_of, read_check
from scorer_api.rpc import service
from scorer_api.rpc.protobuf import MalformedError
from scorer_api.rpc.service import INTERNAL, Answer, RefusedCallError, ScorerService

log = logging.getLogger(__name__)

PROCESS = f"/{PROCESSOR}/Process"
# Envoy sends what it has read of a body in one message: 4.5 MB of a body of 12 MB were seen.
MESSAGE_BYTES_MIN = 16 * 2**20
# Of a message, what is beside its body.
HEAD_BYTES = 2**20
CONNECTIONS_WAITING_MAX = 1024


class GatewayServer:
    """`async with` it: it listens until the block ends, and then until its calls have ended, `--gateway-drain-s` at most.

    `scorer`: what is answered besides picks, None for nothing. `is_ready`: whether the service is. `tls`: None for plain text. Raises
    SettingError where it cannot listen.
    """

    def __init__(
        self, settings: Settings, calls: Calls, is_ready: Callable[[], bool], tls: ssl.SSLContext | None, scorer: ScorerService | None = None
    ) -> None:
        self._settings = settings
        self._calls = calls
        self._scorer = scorer
        self._is_ready = is_ready
        self._tls = tls
        self._draining: asyncio.Task[None] | None = None
        self._handlers: dict[bytes, Handler] = {PROCESS.encode(): self._process, CHECK.encode(): self._check}
        if scorer is not None:
            self._handlers |= _handlers_of(scorer)

    async def __aenter__(self) -> Self:
        address = self._settings.gateway_listen
        assert address is not None, "made where it is to listen"
        limits = self._settings.limits
        room, message_bytes_max = BodyRoom(limits.http.bodies_bytes_max), max(self._settings.body_bytes_max, MESSAGE_BYTES_MIN) + HEAD_BYTES
        self._connections = Connections(self._serve, room, message_bytes_max, limits.gateway.gateway_calls_max)
        try:
            listener = _listen(address, is_shared=self._settings.workers > 1)
        except OSError:
            raise SettingError("--gateway-listen", address, "cannot listen there") from None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connections.connect, sock=listener, ssl=self._tls, backlog=CONNECTIONS_WAITING_MAX)
        log.info("serving gateways", extra={"address": f"{address.rpartition(':')[0]}:{listener.getsockname()[1]}", "tls": self._tls is not None})
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.drain()
        assert self._draining is not None, "just begun"
        await self._draining

    def drain(self) -> None:
        """Health says NOT_SERVING from now on. Idempotent."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="gateway drain")

    async def _drain(self) -> None:
        """Gateways that ask for health go elsewhere first: one whose call is refused cannot send a body elsewhere that it has begun to send here."""
        drain_s, notice_s = self._settings.gateway_drain_s, self._settings.limits.gateway.gateway_notice_s
        has_other_calls = self._scorer is not None and self._scorer.total > 0
        if self._calls.total or has_other_calls:
            log.info("gateway draining", extra={"calls": self._calls.count})
            await asyncio.sleep(min(notice_s, drain_s))
        if self._scorer is not None:
            self._scorer.end()
        self._server.close()
        await self._connections.close(max(0.0, drain_s - notice_s))

    # Calls

    def _serve(self, call: GrpcCall, stream: Stream, path: bytes) -> None:
        handler = self._handlers.get(path)
        if handler is None:
            stream.finish(StatusError("UNIMPLEMENTED", "there is no such method"))
        else:
            call.task = asyncio.get_running_loop().create_task(_run(handler, call, stream), name="call over gRPC")

    async def _process(self, call: GrpcCall) -> None:
        try:
            await self._calls.serve(call, call.write)
        except MalformedError as error:
            raise StatusError("INVALID_ARGUMENT", str(error)) from None

    async def _check(self, call: GrpcCall) -> None:
        try:
            name = read_check(await _only_message(call))
        except MalformedError as error:
            raise StatusError("INVALID_ARGUMENT", str(error)) from None
        await call.write(health_of(name, is_serving=self._draining is None and self._is_ready()))


def _listen(address: str, *, is_shared: bool) -> socket.socket:
    """`is_shared`: by the workers of one service. Otherwise two services could listen there, and each would get some of the calls. Raises OSError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family, _, _, _, found = socket.getaddrinfo(host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    is_any = family == socket.AF_INET6 and found[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(found[:2], family=family, backlog=CONNECTIONS_WAITING_MAX, reuse_port=is_shared, dualstack_ipv6=is_any)


async def _run(handler: Handler, call: GrpcCall, stream: Stream) -> None:
    """Answer a call, and end it with its status."""
    error = None
    try:
        await handler(call)
    except StatusError as refusal:
        error = refusal
    except Exception as problem:
        if isinstance(problem, ConnectionResetError) and stream.has_ended:
            return
        log.exception("call failed")
        error = StatusError("INTERNAL", INTERNAL)
    stream.finish(error)


async def _only_message(call: GrpcCall) -> bytes:
    async for message in call:
        return message
    raise StatusError("INTERNAL", "the call ended before its request")


def _handlers_of(scorer: ScorerService) -> dict[bytes, Handler]:
    """Path of a method → handler."""
    found = {path.encode(): _answering(answer) for path, answer in scorer.methods.items()}
    return found | {path.encode(): _streaming(stream) for path, stream in scorer.streams.items()}


def _answering(answer: Answer) -> Handler:
    async def handle(call: GrpcCall) -> None:
        request = await _only_message(call)
        try:
            await call.write(await answer(request, call.metadata))
        except RefusedCallError as error:
            raise _status_of(error) from None

    return handle


def _streaming(stream: service.Stream) -> Handler:
    async def handle(call: GrpcCall) -> None:
        request = await _only_message(call)
        try:
            async with aclosing(stream(request, call.metadata)) as messages:
                async for message in messages:
                    await call.write(message)
        except RefusedCallError as error:
            raise _status_of(error) from None

    return handle


def _status_of(error: RefusedCallError) -> StatusError:
    return StatusError(error.refusal.code, error.refusal.message, error.refusal.details)
