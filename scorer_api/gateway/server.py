"""The endpoint picker and the scorer over gRPC. The only module that knows grpcio: it is imported where `--gateway-listen` is set."""

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from indexer.config.settings import Settings
from indexer.errors import SettingError
from scorer_api.gateway.calls import Calls
from scorer_api.gateway.certificate import Certified, Pem
from scorer_api.gateway.health import CHECK, PROCESSOR, health_of, read_check
from scorer_api.rpc.problems import DETAILS, Refusal
from scorer_api.rpc.protobuf import MalformedError
from scorer_api.rpc.service import Answer, RefusedCallError, ScorerService, Stream

log = logging.getLogger(__name__)

PROCESS = f"/{PROCESSOR}/Process"
# Envoy sends what it has read of a body in one message: 4.5 MB of a body of 12 MB were seen.
MESSAGE_BYTES_MIN = 16 * 2**20
# Of a message, what is beside its body.
HEAD_BYTES = 2**20
PINGS_MS = 100
KEEPALIVE_MS = 30_000


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max(settings.body_bytes_max, MESSAGE_BYTES_MIN) + HEAD_BYTES),
        ("grpc.max_concurrent_streams", settings.limits.gateway.gateway_calls_max),
        # A gateway's keepalive pings once a second, also in silence. By default gRPC ends such a connection with all its calls.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", PINGS_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        # Otherwise two services may listen on one port, and each gets some of the calls: that is for workers of one service.
        ("grpc.so_reuseport", int(settings.workers > 1)),
    ]


class GatewayServer:
    """`async with` it: it listens until the block ends, and then until its calls have ended, `--gateway-drain-s` at most.

    `scorer`: what is answered besides picks, None for nothing. `is_ready`: whether the service is. `certificate`: None for plain text. Raises
    SettingError where it cannot listen.
    """

    def __init__(
        self, settings: Settings, calls: Calls, is_ready: Callable[[], bool], certificate: Certified | None, scorer: ScorerService | None = None
    ) -> None:
        self._settings = settings
        self._calls = calls
        self._scorer = scorer
        self._is_ready = is_ready
        self._certificate = certificate
        self._draining: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        address = self._settings.gateway_listen
        assert address is not None, "made where it is to listen"
        self._server = grpc.aio.server(options=_options(self._settings))
        handlers = {PROCESS: grpc.stream_stream_rpc_method_handler(self._process), CHECK: grpc.unary_unary_rpc_method_handler(self._check)}
        if self._scorer is not None:
            handlers |= _handlers_of(self._scorer)
        self._server.add_generic_rpc_handlers((_Handlers(handlers),))
        try:
            port = self._add_port(address)
        except RuntimeError:
            raise SettingError("--gateway-listen", address, "cannot listen there") from None
        await self._server.start()
        log.info("serving gateways", extra={"address": f"{address.rpartition(':')[0]}:{port}", "tls": self._certificate is not None})
        return self

    def _add_port(self, address: str) -> int:
        """Raises RuntimeError."""
        certificate = self._certificate
        if certificate is None:
            return int(self._server.add_insecure_port(address))
        shown = certificate.pem

        def renewed() -> Any:
            """Asked at each handshake, in a thread of gRPC; None where nothing has changed."""
            nonlocal shown
            if certificate.pem == shown:
                return None
            shown = certificate.pem
            return _configuration(shown)

        return int(self._server.add_secure_port(address, grpc.dynamic_ssl_server_credentials(_configuration(shown), renewed)))

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
        await self._server.stop(max(0.0, drain_s - notice_s))

    async def _process(self, messages: AsyncIterable[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        try:
            await self._calls.serve(messages, context.write)
        except MalformedError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _check(self, request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        try:
            name = read_check(request)
        except MalformedError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return health_of(name, is_serving=self._draining is None and self._is_ready())


def _configuration(pem: Pem) -> Any:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)])


def _handlers_of(scorer: ScorerService) -> dict[str, Any]:
    """Path of a method → handler."""
    found = {path: grpc.unary_unary_rpc_method_handler(_answering(answer)) for path, answer in scorer.methods.items()}
    return found | {path: grpc.unary_stream_rpc_method_handler(_streaming(stream)) for path, stream in scorer.streams.items()}


def _answering(answer: Answer) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def handle(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        try:
            return await answer(request, context.invocation_metadata())
        except RefusedCallError as error:
            await _refuse(context, error.refusal)
            raise

    return handle


def _streaming(stream: Stream) -> Callable[[bytes, Any], Awaitable[None]]:
    async def handle(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        try:
            async with aclosing(stream(request, context.invocation_metadata())) as messages:
                async for message in messages:
                    await context.write(message)
        except RefusedCallError as error:
            await _refuse(context, error.refusal)

    return handle


async def _refuse(context: Any, refusal: Refusal) -> None:
    """Raises what ends the call."""
    await context.abort(getattr(grpc.StatusCode, refusal.code), refusal.message, ((DETAILS, refusal.details),))


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Messages stay bytes."""

    def __init__(self, handlers: Mapping[str, Any]) -> None:
        self._handlers = handlers

    def service(self, details: Any) -> Any:
        """The handler of this method; None where there is none."""
        return self._handlers.get(details.method)
