"""`python -m bench.gateway.noop_picker PORT DESTINATION`: the endpoint picker's own gRPC and messages, around a pick that is always the same."""

import asyncio
import signal
import sys

import uvloop
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.http.body_room import BodyRoom
from scorer_api.api.pick import Picked
from scorer_api.gateway.calls import Calls
from scorer_api.gateway.exchange import Question
from scorer_api.gateway.messages import Mutation
from scorer_api.gateway.metrics import GatewayMetrics
from scorer_api.gateway.server import GatewayServer


class FixedCalls(Calls):
    """Calls whose pick is this destination."""

    def __init__(self, settings: Settings, destination: str) -> None:
        super().__init__(settings, None, None, GatewayMetrics(CollectorRegistry()), BodyRoom(2**30))  # type: ignore[arg-type]  # nothing is asked
        self._fixed = Picked("id", "pod", destination, [], "only_one", None, 0, None), Mutation(destination), None

    async def pick(self, question: Question) -> tuple[Picked, Mutation, bytes | None]:
        return self._fixed

    def done(self, name: str) -> None:
        """Nothing counts."""


async def run(port: int, destination: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = Settings(gateway_listen=f"127.0.0.1:{port}", gateway_drain_s=0.001)
    async with GatewayServer(settings, FixedCalls(settings, destination), lambda: True, None):
        await stop.wait()


if __name__ == "__main__":
    uvloop.run(run(int(sys.argv[1]), sys.argv[2]))
