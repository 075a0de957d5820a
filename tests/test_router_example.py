"""The router in the documentation, in front of demo engines and the service, as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.demo_fleet import MODEL, Chat, DemoFleet, check_chats_stay, client_of, demo_fleet, wait_for_http
from tests.ports import free_port
from tests.running import ROOT
from tests.waiting import wait_until

ROUTER = ROOT / "docs" / "router_example.py"


@contextmanager
def router(indexer_url: str) -> Iterator[httpx.Client]:
    port = free_port()
    words = [sys.executable, "-m", "uvicorn", "router_example:app", "--app-dir", str(ROUTER.parent), "--port", str(port), "--log-level", "warning"]
    env = {**os.environ, "KV_INDEXER_URL": indexer_url}
    with subprocess.Popen(words, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as process, client_of(f"http://127.0.0.1:{port}") as client:
        wait_for_http(client, process)
        yield client
        process.terminate()
        assert process.stderr is not None, "its standard error is a pipe"
        assert "Traceback" not in process.stderr.read()


@pytest.fixture(scope="module")
def fleet() -> Iterator[DemoFleet]:
    with demo_fleet() as fleet:
        yield fleet


def test_it_has_about_forty_lines() -> None:
    lines = [line for line in ROUTER.read_text().splitlines() if line and not line.startswith(("import", "from", '"""'))]
    assert len(lines) <= 40


def test_chats_stay_and_errors_come_back_and_picks_end(fleet: DemoFleet) -> None:
    with router(fleet.service.url) as client:
        check_chats_stay(fleet, client, "whole")
        check_chats_stay(fleet, client, "streamed", count=2, stream=True)
        completion = client.post("/v1/completions", json={"model": MODEL, "prompt": "1 2 3"})
        assert (completion.status_code, completion.json()["object"]) == (200, "text_completion")
        unknown = client.post("/v1/chat/completions", json={"model": "other", "messages": []})
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
        wrong = client.post("/v1/completions", json={"model": MODEL, "prompt": {"text": 1}})
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "BadRequestError"), "the engine's own error comes back"
        wait_until(lambda: fleet.service.metric("kv_indexer_route_open") == 0)


def test_a_pod_that_is_away_is_passed_over_and_so_is_the_service() -> None:
    with demo_fleet() as fleet, router(fleet.service.url) as client:
        chats = [Chat(client, f"chat-{number}") for number in range(4)]
        left = chats[0].turn().pod
        for chat in chats[1:]:
            chat.turn()
        fleet.service.stop()
        assert chats[0].turn().pod in fleet.engines
        for pod, engine in fleet.engines.items():
            if pod != left:
                engine.kill()
                engine.wait()
        assert [chat.turn().pod for chat in chats] == [left] * 4
        fleet.engines[left].kill()
        fleet.engines[left].wait()
        away = client.post("/v1/chat/completions", json={"model": MODEL, "messages": []})
        assert (away.status_code, away.json()["error"]["message"]) == (503, "no pod answers")
