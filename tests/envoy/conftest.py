"""Two pods, and a service that follows them and picks for gateways."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.envoy.fleet import FLAGS, TEXTS, Fleet
from tests.envoy.pods import Pod
from tests.ports import free_port
from tests.running import Running

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.envoy)


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A module's `GATEWAY` has more flags."""
    port = free_port()
    with ExitStack() as stack:
        pods = {name: stack.enter_context(Pod(name)) for name in TEXTS}
        flags = {**FLAGS, "gateway_listen": f"127.0.0.1:{port}", **getattr(request.module, "GATEWAY", {})}
        service = stack.enter_context(Running(*(pod.spec for pod in pods.values()), **flags))
        for name, pod in pods.items():
            service.wait_for(pod=name, sequence=pod.cache(TEXTS[name]), trust="live")
        yield Fleet(service, port, pods)
