"""A list and a watch against a server that does what a real one does, and worse."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from indexer.discovery import kube_api
from indexer.discovery.errors import Trouble
from indexer.discovery.kube_api import KubeApi, Resource
from indexer.discovery.kube_objects import Pod
from indexer.discovery.list_watch import Health, ListWatch, WatchTimes
from tests.kube_admin import KubeAdmin
from tests.kube_stand_in import StandIn
from tests.tls import CERTIFICATE, DATA
from tests.waiting import wait_until_async

PODS = Resource(Pod, "/api/v1/namespaces/inference/pods", {"labelSelector": "app=vllm"}, "pods", "inference")
TIMES = WatchTimes(watch_s=(1, 1), silence_s=0.2, pause_s=(0.02, 0.1))


class Watched:
    """A watch that runs, and what it said."""

    def __init__(self, api: KubeApi, times: WatchTimes) -> None:
        self.errors: list[Trouble] = []
        self.health = Health("s", self.errors.append)
        self.watch = ListWatch(api, PODS, self.health, lambda: None, times)

    @property
    def names(self) -> list[str]:
        return sorted(self.watch.objects or {})


@asynccontextmanager
async def watched(server: StandIn, token_file: Path, times: WatchTimes = TIMES, ca_file: Path = CERTIFICATE) -> AsyncIterator[Watched]:
    async with KubeApi(server.url, str(token_file), str(ca_file)) as api:
        it = Watched(api, times)
        task = asyncio.create_task(it.watch.run())
        try:
            yield it
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("t0")
    return path


async def test_watches_that_end_go_on_from_the_last_version_without_a_list(token_file: Path) -> None:
    with StandIn() as server, KubeAdmin(server.url, server.admin, str(CERTIFICATE)) as admin:
        admin.create_pod("a")
        async with watched(server, token_file) as it:
            await wait_until_async(lambda: it.names == ["a"])
            await wait_until_async(lambda: server.requests.count(("watch", "pods")) >= 3)
            # Kept alive by the bookmark at the end of a quiet watch: without it this version would be too old.
            server.compact()
            server.oldest -= 1
            await wait_until_async(lambda: server.requests.count(("watch", "pods")) >= 4)
            admin.create_pod("b")
            await wait_until_async(lambda: it.names == ["a", "b"])
            assert (server.requests.count(("list", "pods")), it.errors) == (1, [])


async def test_a_server_that_is_frozen_is_found_out_and_read_again_when_it_wakes(token_file: Path) -> None:
    with StandIn() as server, KubeAdmin(server.url, server.admin, str(CERTIFICATE)) as admin:
        admin.create_pod("a")
        async with watched(server, token_file) as it:
            await wait_until_async(lambda: it.names == ["a"])
            server.is_frozen = True
            await wait_until_async(lambda: "timeout" in it.errors)
            assert next(it.health.failures()).startswith(f"{server.url} was silent for 1.2 s, since 20")
            assert it.names == ["a"]
            server.is_frozen = False
            await wait_until_async(lambda: not list(it.health.failures()))


async def test_a_list_whose_pages_are_too_old_begins_again(token_file: Path) -> None:
    with StandIn() as server, KubeAdmin(server.url, server.admin, str(CERTIFICATE)) as admin:
        server.page_max = 1
        for name in ("a", "b", "c"):
            admin.create_pod(name)
        pages, list_page = [], server.compact

        def compact_once(request: tuple[str, str]) -> None:
            pages.append(request)
            if len(pages) == 2:
                list_page()

        server.note_request = compact_once
        async with watched(server, token_file) as it:
            await wait_until_async(lambda: it.names == ["a", "b", "c"])
            assert it.errors == []


@pytest.mark.rule("K2")
async def test_a_certificate_of_another_authority_is_not_accepted(token_file: Path) -> None:
    with StandIn() as server:
        async with watched(server, token_file, ca_file=DATA / "tls-certificate-2.pem") as it:
            await wait_until_async(lambda: it.errors[:1] == ["unreachable"])
            assert "certificate verify failed" in next(it.health.failures())
            assert server.requests == []


async def test_a_renewed_authority_is_read_again(token_file: Path, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.crt"
    ca_file.write_bytes((DATA / "tls-certificate-2.pem").read_bytes())
    with StandIn() as server:
        async with watched(server, token_file, ca_file=ca_file) as it:
            await wait_until_async(lambda: it.errors)
            ca_file.write_bytes(CERTIFICATE.read_bytes())
            await wait_until_async(lambda: it.watch.objects == {})


async def test_a_token_that_is_missing_is_said(tmp_path: Path) -> None:
    with StandIn() as server:
        async with watched(server, tmp_path / "none") as it:
            await wait_until_async(lambda: it.errors)
            assert it.errors[0] == "unauthorized"
            assert next(it.health.failures()).startswith(f"there is no token in {tmp_path / 'none'}")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
async def test_refusals_are_told_apart_and_asked_again_with_pauses(token_file: Path, status: int) -> None:
    with StandIn() as server:
        server.refused["list", "pods"] = status
        async with watched(server, token_file) as it:
            await wait_until_async(lambda: len(it.errors) >= 3)
            assert it.errors[0] == {401: "unauthorized", 403: "forbidden", 404: "missing"}.get(status, "status")
            assert f"cannot list pods in namespace inference, answered {status}" in next(it.health.failures())
            server.refused.clear()
            await wait_until_async(lambda: it.watch.objects == {} and not list(it.health.failures()))


@pytest.mark.rule("K2")
async def test_a_plain_port_gets_no_token(token_file: Path) -> None:
    async with KubeApi("http://127.0.0.1:1", str(token_file)) as api:
        assert "Authorization" not in api._headers()
    async with KubeApi("https://127.0.0.1:1", str(token_file)) as api:
        assert api._headers()["Authorization"] == "Bearer t0"


@pytest.mark.rule("K3")
async def test_an_answer_without_an_end_takes_bounded_memory(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "PAGE_BYTES_MAX", 2_000)
    monkeypatch.setattr(kube_api, "LINE_BYTES_MAX", 2_000)
    with StandIn() as server, KubeAdmin(server.url, server.admin, str(CERTIFICATE)) as admin:
        async with watched(server, token_file) as it:
            await wait_until_async(lambda: it.watch.objects == {})
            admin.create_pod("a", topic="x" * 3_000)
            await wait_until_async(lambda: it.errors[:2] == ["too_large", "too_large"])
            assert it.names == []
            admin.delete_pod("a")
            admin.create_pod("b")
            await wait_until_async(lambda: it.names == ["b"])
