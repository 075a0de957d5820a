"""A service of each role: what all roles serve is the same everywhere."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.engine import Engine, stored
from tests.processes import ingest
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.waiting import wait_until


@pytest.fixture(scope="module", params=["serve", "ingest"])
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def anywhere(role: str) -> Iterator[Client]:
    """It follows one engine, `pod`, which holds a block of the model `m`."""
    with ExitStack() as stack:
        engine = stack.enter_context(Engine())
        engine.publish(stored([1], [1, 2, 3, 4]))
        if role == "serve":
            service: Client = stack.enter_context(Running(engine.spec()))
        else:
            redis = stack.enter_context(RedisServer())
            service = stack.enter_context(ingest(redis.url, engine.spec())).wait_url()
        wait_until(lambda: service.http.get(f"{service.url}/readyz").json()["status"] == "ready", 30, "the service to be ready")
        service.wait_for(sequence=0, trust="live")
        yield service
