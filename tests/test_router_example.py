"""The router in the documentation, in front of demo engines and the service, as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from tests.engine_server import EngineServer, Reply, Request, json_reply, tokens_reply
from tests.ports import free_port
from tests.running import ROOT, Command
from tests.waiting import wait_until

ROUTER = ROOT / "docs" / "router_example.py"
MODEL = "demo/chat"


def tokenize(request: Request) -> Reply:
    """Numbers in words are tokens."""
    return tokens_reply([int(word) for message in request["messages"] for word in message["content"].split()])


@contextmanager
def engine(chats: str) -> Iterator[tuple[str, str]]:
    """The API server of a pod, and a demo engine that publishes as that pod. Yields its name, which is its address, and its spec."""
    with EngineServer(routes={"/tokenize": tokenize}) as api:
        pod = api.netloc
        api.routes["/v1/chat/completions"] = lambda request: json_reply({"served_by": pod, "asked": request}, 418 if request.get("n") == 418 else 200)
        words = [sys.executable, "-m", "scorer_api.cli", "demo-engine", "--pod", pod, "--chats", chats, "--blocks", "512", "--with-parent"]
        with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield pod, process.stdout.readline().strip()
            process.terminate()


@contextmanager
def router(indexer_url: str) -> Iterator[httpx.Client]:
    port = free_port()
    words = [sys.executable, "-m", "uvicorn", "router_example:app", "--app-dir", str(ROUTER.parent), "--port", str(port), "--log-level", "warning"]
    env = {**os.environ, "KV_INDEXER_URL": indexer_url, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=ROOT, env=env) as process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        wait_until(lambda: _listens(client))
        yield client
        process.terminate()


def _listens(client: httpx.Client) -> bool:
    try:
        return client.get("/openapi.json").status_code == 200
    except httpx.ConnectError:
        return False


def ask(client: httpx.Client, chat: int, **more: Any) -> httpx.Response:
    """A chat as the demo engines serve it: the system prompt, and the chat's own first turn."""
    system, turn = " ".join(map(str, range(1, 65))), " ".join(map(str, range(1000 * chat + 1, 1000 * chat + 82)))
    messages = [{"role": "system", "content": system}, {"role": "user", "content": turn}]
    return client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages, **more})


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[list[str], Command]]:
    """The first pod serves chat 1, the second chat 2."""
    with ExitStack() as stack:
        (first, first_spec), (second, second_spec) = stack.enter_context(engine("1")), stack.enter_context(engine("2"))
        service = stack.enter_context(Command("serve", "--port", "0", "--engine", first_spec, "--engine", second_spec))
        service.wait_url()
        for pod in (first, second):
            wait_until(lambda pod=pod: service.stream(pod)["trust"] == "live" and service.stream(pod)["blocks"].get("gpu", 0) > 9)
        yield [first, second], service


def test_it_has_about_thirty_lines() -> None:
    lines = [line for line in ROUTER.read_text().splitlines() if line and not line.startswith(("import", "from", '"""'))]
    assert len(lines) <= 30


def test_a_chat_goes_to_the_pod_that_holds_it_and_elsewhere_when_nobody_knows(served: tuple[list[str], Command]) -> None:
    pods, service = served
    with router(service.url) as client:
        for _ in range(3):
            for chat, pod in ((1, pods[0]), (2, pods[1])):
                answer = ask(client, chat)
                assert (answer.status_code, answer.json()["served_by"]) == (200, pod)
        assert answer.json()["asked"]["messages"][0]["role"] == "system", "the request goes on as it came"
        refused = ask(client, 1, n=418)
        assert (refused.status_code, refused.json()["served_by"]) == (418, pods[0]), "the engine's own status comes back"
        service.stop()
        assert ask(client, 2).json()["served_by"] in pods
