"""LiteLLM's proxy with the callback of deploy/examples, and the OpenAI SDK and LangChain behind the example router."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo_fleet import Answer, Chat, DemoFleet, check_chats_stay, demo_fleet
from tests.integrations.gateways import Gateway
from tests.running import ROOT
from tests.waiting import wait_until

KEY = f"sk-{secrets.token_hex(32)}"
ENVIRONMENT = ROOT / ".venv-litellm" / "bin"
pytestmark = [pytest.mark.integrations, pytest.mark.skipif(not (ENVIRONMENT / "litellm").exists(), reason="LiteLLM is not installed, see Makefile")]


def litellm(fleet: DemoFleet) -> Gateway:
    words = [str(ENVIRONMENT / "litellm"), "--config", "{folder}/litellm.yaml", "--host", "127.0.0.1", "--port", "{port}"]
    env = {"KV_INDEXER_URL": fleet.service.url, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    gateway = Gateway(fleet, words, ["litellm.yaml", "litellm_router.py"], env=env)
    gateway.http.headers["Authorization"] = f"Bearer {KEY}"
    return gateway


@pytest.fixture(scope="module")
def fleet() -> Iterator[DemoFleet]:
    """By prefix alone: the clients do not pause between their turns."""
    with demo_fleet("--route-policy", "prefix") as fleet:
        yield fleet


def test_chats_stay_and_picks_end_and_requests_go_on_without_the_service() -> None:
    with demo_fleet() as fleet, litellm(fleet) as gateway:
        check_chats_stay(fleet, gateway.http, "whole")
        check_chats_stay(fleet, gateway.http, "streamed", count=2, stream=True)
        wait_until(lambda: fleet.service.metric("kv_indexer_route_open") == 0)
        assert fleet.service.metric("kv_indexer_route_done_total", outcome="known") == 16
        fleet.service.stop()
        assert {Chat(gateway.http, f"chat-{number}").turn().pod for number in range(16)} == {"one", "two"}


def test_the_openai_sdk_and_langchain_take_the_router_by_its_address(fleet: DemoFleet) -> None:
    words = [sys.executable, "-m", "uvicorn", "router_example:app", "--app-dir", str(ROOT / "docs"), "--port", "{port}", "--log-level", "warning"]
    with Gateway(fleet, words, [], env={"KV_INDEXER_URL": fleet.service.url}) as router:
        env = {**os.environ, "ROUTER_URL": f"{str(router.http.base_url).rstrip('/')}/v1"}
        script = Path(ROOT / "docs" / "clients_example.py")
        asked = subprocess.run([str(ENVIRONMENT / "python"), str(script)], env=env, capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, asked.stderr
    answers = [(who, Answer.of(text)) for who, text in (line.split(": ", 1) for line in asked.stdout.splitlines())]
    assert [who for who, _ in answers] == ["OpenAI", "OpenAI", "LangChain", "LangChain"]
    for (_, first), (_, second) in (answers[:2], answers[2:]):
        assert second.pod == first.pod
        assert second.cached_tokens >= first.tokens - first.tokens % 16
