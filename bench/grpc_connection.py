"""Asking for scores over one gRPC connection, with messages that are encoded already."""

from types import TracebackType
from typing import Any, Self

import grpc

TIMEOUT_S = 30.0
SCORE = "/kv_indexer.v1.Scorer/Score"


class GrpcConnection:
    """`with GrpcConnection(host, port) as connection: connection.ask(message)`. Each has a connection of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._channel: Any = grpc.insecure_channel(f"{host}:{port}", [("grpc.use_local_subchannel_pool", 1)])
        self._ask = self._channel.unary_unary(SCORE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()

    def ask(self, request: bytes) -> bytes:
        """The answer, encoded. Raises RuntimeError where there is none."""
        try:
            answer: bytes = self._ask(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise RuntimeError(f"the service answered {error}") from None
        return answer
