"""The first start of this version beside what releases left in Redis (tests/layouts.py): followed where the layout is the same, else left alone."""

import re

import pytest

from indexer.store.keyspace import LAYOUT
from tests import layouts
from tests.engine import Engine, stored
from tests.layouts import BLOCKS_A, BLOCKS_B, MODEL, NAMESPACE
from tests.processes import serve
from tests.redis_server import RedisServer
from tests.running import ROOT, Client
from tests.waiting import wait_until

RELEASES = re.findall(r"^## (\d+\.\d+\.\d+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
FOLLOWING = stored([4], range(13, 17), 2)


def layout_of(release: str) -> int:
    (number,) = {int(key.split(b":")[1]) for key, _, _ in layouts.read(release).keys}
    return number


def known(client: Client) -> dict[str, str]:
    """Pod → the trust of its stream."""
    return {pod["pod"]: pod["streams"][0]["trust"] for pod in client.http.get(f"{client.url}/v1/pods").json()["pods"]}


def test_what_each_release_left_is_recorded() -> None:
    assert sorted(RELEASES) == sorted(path.stem for path in layouts.DATA.glob("*.msgpack"))
    told = re.findall(r"^\| (\d+\.\d+\.\d+) \| (\d+) \|$", (ROOT / "docs/reference/compatibility.md").read_text(), re.MULTILINE)
    assert {release: int(layout) for release, layout in told} == {release: layout_of(release) for release in RELEASES}


@pytest.mark.parametrize("release", [release for release in RELEASES if layout_of(release) == LAYOUT])
def test_the_same_layout_is_followed_without_a_cold_minute(release: str) -> None:
    """The new owner goes on from the state in Redis: what was announced before is matched, and so is what comes next."""
    recording = layouts.read(release)
    with RedisServer() as server, Engine() as a, Engine() as b:
        layouts.restore(server.client(), recording)
        layouts.go_on(a, recording.payloads["a"])
        layouts.go_on(b, recording.payloads["b"])
        with serve(server.url, a.spec("a", MODEL), b.spec("b", MODEL), namespace=NAMESPACE) as service:
            service.wait_url()
            wait_until(lambda: {"a", "b", "c"} <= known(service).keys(), 30, "all pods, the registered one too, to be known")
            service.wait_for(pod="a", connected=True)
            a.publish(FOLLOWING)
            wait_until(lambda: service.matched([*BLOCKS_A[:8], *range(13, 17), 0], "a", MODEL) == 12, 30, "old blocks and new ones to be matched")
            assert service.matched([*BLOCKS_B, 0], "b", MODEL) == 8
            service.wait_for(pod="a", trust="live", gaps=0, restarts=0)


@pytest.mark.parametrize("release", [release for release in RELEASES if layout_of(release) != LAYOUT])
def test_another_layout_is_neither_read_nor_changed(release: str) -> None:
    """The new version asks the engines for a replay, and the way back stays open."""
    recording = layouts.read(release)
    with RedisServer() as server, Engine() as a:
        client = server.client()
        layouts.restore(client, recording)
        old = f"{NAMESPACE}:{layout_of(release)}:"
        # What the release itself renews has ended by then.
        before = {key: value for key, value in layouts.dumped(client, old).items() if client.pttl(key) > 60_000 or client.pttl(key) == -1}
        assert len(before) > 10
        a.publish(stored([1], BLOCKS_A[:4]))
        with serve(server.url, a.spec("a", MODEL), namespace=NAMESPACE) as service:
            service.wait_url()
            wait_until(lambda: "a" in known(service), 30, "the pod to be known")
            service.wait_for(pod="a", trust="live", sequence=0)
            wait_until(lambda: service.matched([*BLOCKS_A, 0], "a", MODEL) == 4, 30, "what the engine tells now, and nothing else, to be matched")
            assert known(service).keys() == {"a"}
        assert {key: value for key, value in layouts.dumped(client, old).items() if key in before} == before
