"""Two demo engines with a service, for tests of what stands in front of them, and chats of a client."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from msgspec import Struct

from tests.ports import free_port
from tests.running import NO_AUTHORITIES, ROOT, Command
from tests.waiting import wait_until

MODEL = "demo/chat"
ANSWER = re.compile(r"This is (\S+), which had (\d+) of (\d+) tokens in its cache\.")
BLOCK_SIZE = 16
ANSWER_TOKENS = 12
# At the load of each pod.
LOOKS = 3


class DemoFleet(Struct, frozen=True):
    """`engines`: the processes, by pod. `addresses`: of their APIs, by pod."""

    service: Command
    engines: dict[str, "subprocess.Popen[str]"]
    addresses: dict[str, str]

    def wait_between_turns(self, chat: "Chat", pod: str) -> None:
        """Wait until the service knows that this pod has the chat, and has looked at the loads again: less than a person takes between two turns."""
        http, url = self.service.http, self.service.url

        def is_known() -> bool:
            scored = http.post(f"{url}/v1/score", json={"model": MODEL, "messages": chat.messages}).json()
            return any(each["pod"] == pod and each["matched_tokens"] > 0 for each in scored["pods"])

        wait_until(is_known)
        looks = self._looks()
        wait_until(lambda: self._looks() >= looks + LOOKS * len(self.engines))

    def _looks(self) -> float:
        return self.service.metric("kv_indexer_load_requests_total", outcome="load")


@contextmanager
def demo_fleet(*words: str) -> Iterator[DemoFleet]:
    """Pods `one` and `two`. `words`: more flags of the service."""
    with ExitStack() as stack:
        engines, addresses, specs = {}, {}, []
        for number, pod in enumerate(("one", "two"), 1):
            addresses[pod] = f"127.0.0.1:{free_port()}"
            flags = {"pod": pod, "chats": number, "blocks": 4096, "requests-per-s": 0.01, "http-port": addresses[pod].rpartition(":")[2]}
            command = [sys.executable, "-m", "scorer_api.cli", "demo-engine", "--with-parent"]
            command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
            engine = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            stack.callback(engine.kill)
            assert engine.stdout is not None, "its standard output is a pipe"
            specs += ["--engine", engine.stdout.readline().strip()]
            engines[pod] = engine
        service = stack.enter_context(Command("serve", "--port", "0", "--load-interval-s", "0.1", *specs, *words))
        service.wait_url()
        yield DemoFleet(service, engines, addresses)


class Answer(Struct, frozen=True):
    """What a demo engine says: its pod, and how many of the prompt's tokens it had in its cache."""

    pod: str
    cached_tokens: int
    tokens: int

    @classmethod
    def of(cls, text: str) -> "Answer":
        found = ANSWER.fullmatch(text)
        assert found, text
        return cls(found[1], int(found[2]), int(found[3]))


class Chat:
    """A client's chat with whatever stands in front of the engines."""

    def __init__(self, http: httpx.Client, name: str) -> None:
        self.http = http
        self.messages = [{"role": "user", "content": " ".join(f"{name}-{number}" for number in range(200))}]

    def turn(self, **more: Any) -> Answer:
        """Ask, and keep the answer for the next turn."""
        body = {"model": MODEL, "messages": self.messages, **more}
        text = self._streamed(body) if body.get("stream") else self._whole(body)
        self.messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "and what else?"}]
        return Answer.of(text)

    def _whole(self, body: dict[str, Any]) -> str:
        response = self.http.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def _streamed(self, body: dict[str, Any]) -> str:
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            return text_of(response)


def text_of(response: httpx.Response) -> str:
    """The text of a streamed chat completion."""
    events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def check_chats_stay(fleet: DemoFleet, http: httpx.Client, name: str, count: int = 6, **more: Any) -> None:
    """A chat goes where it began, in its third turn as in its second: so many chats begin at the pods themselves, in turn, the others at `http`."""
    for number in range(count):
        pod = list(fleet.addresses)[number % 2]
        with client_of(f"http://{fleet.addresses[pod]}") as direct:
            chat = Chat(direct, f"{name}-{number}")
            before = chat.turn(**more)
        chat.http = http
        for _ in range(2):
            fleet.wait_between_turns(chat, pod)
            after = chat.turn(**more)
            known = before.tokens + ANSWER_TOKENS
            assert (after.pod, after.cached_tokens) == (pod, known - known % BLOCK_SIZE), number
            before = after


def client_of(url: str, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=30, verify=NO_AUTHORITIES, headers=headers)


def wait_for_http(http: httpx.Client, process: "subprocess.Popen[str]", path: str = "/v1/models") -> None:
    """Wait until somebody answers there. Fails if the process ends."""

    def answers() -> bool:
        assert process.poll() is None, "it ended"
        try:
            return http.get(path).status_code == 200
        except httpx.TransportError:
            return False

    wait_until(answers, 60)
