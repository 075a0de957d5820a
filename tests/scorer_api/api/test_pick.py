"""Picks for gateways over HTTP: a client's own request in, headers out."""

from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event
from typing import Any

import httpx
import pytest

from tests.engine import Engine, stored
from tests.engine_server import EngineServer, Reply, Request, bytes_as_tokens, json_reply, tokenize_bytes
from tests.running import Client, Running

CHAT = [{"role": "user", "content": "what is a prefix of a prompt?"}]
TEXT = "once upon a time, there was a prompt"
SYSTEM = [{"role": "system", "content": "be kind, and brief"}, *CHAT]
PATIENT = {"route_seed": "1", "route_speculative_s": "0", "route_forget_s": "600", "load_interval_s": "0"}
DESTINATION, FALLBACKS, ID = "x-gateway-destination-endpoint", "x-kv-fallbacks", "x-kv-request-id"


class Pods:
    """Two pods of a model, `chats` and `texts`, each with what it is named after in its cache; and where gateways reach them."""

    def __init__(self, service: Client, servers: dict[str, EngineServer]) -> None:
        self.service = service
        self.servers = servers
        self.at = {pod: server.netloc for pod, server in servers.items()}

    def ask(self, path: str = "", method: str = "POST", **more: Any) -> httpx.Response:
        return self.service.http.request(method, f"{self.service.url}/v1/pick{path}", **more)

    def pick(self, path: str = "", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """One that is told to be over at once, so that it counts as no load."""
        response = self.ask(path, json={"model": "m", **body}, headers=headers)
        assert response.status_code == 200, response.text
        assert response.content == b""
        self.end(response)
        return response

    def end(self, response: httpx.Response) -> None:
        assert self.ask(f"/{response.headers[ID]}", "DELETE").status_code == 204


def held(messages: list[dict[str, str]]) -> list[int]:
    tokens = bytes_as_tokens({"messages": messages})
    return tokens[: len(tokens) // 4 * 4]


def publish(engine: Engine, first_hash: int, tokens: list[int]) -> int:
    return engine.publish(stored(list(range(first_hash, first_hash + len(tokens) // 4)), tokens))


@pytest.fixture(scope="module")
def pods() -> Iterator[Pods]:
    with ExitStack() as stack:
        engines = {pod: stack.enter_context(Engine()) for pod in ("chats", "texts")}
        servers = {pod: stack.enter_context(EngineServer(routes={"/tokenize": tokenize_bytes})) for pod in engines}
        specs = [engine.spec(pod, http=servers[pod].url, aliases="alias") for pod, engine in engines.items()]
        service = stack.enter_context(Running(*specs, **PATIENT))
        publish(engines["chats"], 100, held(CHAT))
        publish(engines["chats"], 200, held(SYSTEM))
        tokens = list(TEXT.encode())
        numbers = {"chats": 1, "texts": publish(engines["texts"], 300, tokens[: len(tokens) // 4 * 4])}
        for pod, number in numbers.items():
            service.wait_for(pod=pod, sequence=number, trust="live")
        yield Pods(service, servers)


@pytest.mark.parametrize(
    ("path", "body", "pod"),
    [
        ("/v1/chat/completions", {"messages": CHAT, "temperature": 0.1, "stream": True, "n": 2}, "chats"),
        ("", {"messages": CHAT, "max_tokens": 10}, "chats"),
        ("/v1/completions", {"prompt": TEXT, "logprobs": 3}, "texts"),
        ("/v1/completions", {"prompt": [TEXT, "another"]}, "texts"),
        ("/v1/completions", {"prompt": list(TEXT.encode())}, "texts"),
        ("/v1/completions", {"prompt": [list(TEXT.encode()), [1]]}, "texts"),
        ("/v1/embeddings", {"input": [TEXT], "encoding_format": "base64"}, "texts"),
        ("/v1/responses", {"input": CHAT[0]["content"], "store": False}, "chats"),
        ("/v1/responses", {"input": CHAT[0]["content"], "instructions": SYSTEM[0]["content"]}, "chats"),
        ("/v1/messages", {"messages": CHAT, "system": SYSTEM[0]["content"], "max_tokens": 10}, "chats"),
        ("/v1/chat/completions", {"model": "alias", "messages": CHAT}, "chats"),
    ],
)
def test_a_request_goes_to_the_pod_that_holds_its_prefix(pods: Pods, path: str, body: dict[str, Any], pod: str) -> None:
    (other,) = pods.at.keys() - {pod}
    for _ in range(2):
        headers = pods.pick(path, **body).headers
        assert (headers[DESTINATION], headers[FALLBACKS]) == (pods.at[pod], pods.at[other])
        assert headers["x-kv-picked-for"] == "longest_match"
        assert "x-kv-by-load" not in headers


def test_long_prompts_of_tokens_are_read_too(pods: Pods) -> None:
    """What is known of them is little of so many: the pod that was asked less lately may have them."""
    tokens = [*TEXT.encode(), *[70_000] * 60_000]
    headers = pods.pick("/v1/completions", prompt=tokens).headers
    assert (headers.get("x-kv-by-load"), headers["x-kv-picked-for"] in ("longest_match", "load")) == (None, True)


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/v1/rerank", {"query": "q"}, "other_api"),
        ("/v1/responses", {"input": "hi", "previous_response_id": "r"}, "no_prompt"),
        ("/v1/chat/completions", {"messages": "hi"}, "wrong_value"),
        ("/v1/completions", {"prompt": [-1]}, "wrong_value"),
        ("/v1/completions", {"prompt": [-1] * 100_000}, "wrong_value"),
    ],
)
def test_what_cannot_be_looked_up_gets_a_pod_by_load(pods: Pods, path: str, body: dict[str, Any], why: str) -> None:
    before = [
        pods.service.metric(f"kv_indexer_pick_{name}_total", **label)
        for name, label in (("requests", {"outcome": "by_load"}), ("by_load", {"why": why}))
    ]
    headers = pods.pick(path, **body).headers
    assert headers[DESTINATION] in pods.at.values()
    assert headers["x-kv-by-load"] == why
    after = [
        pods.service.metric(f"kv_indexer_pick_{name}_total", **label)
        for name, label in (("requests", {"outcome": "by_load"}), ("by_load", {"why": why}))
    ]
    assert after == [count + 1 for count in before]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"method": "GET", "path": "/v1/models"}, "no_body"),
        ({"method": "GET"}, "no_body"),
        ({"method": "DELETE", "path": "/v1/responses/resp_1"}, "no_body"),
        ({}, "no_body"),
        ({"files": {"file": b"audio"}, "path": "/v1/audio/transcriptions"}, "other_type"),
        ({"json": {"prompt": TEXT}, "headers": {"Content-Encoding": "gzip"}}, "other_type"),
        ({"content": b'{"model": "m", "prom', "headers": {"x-envoy-auth-partial-body": "true"}}, "over_limit"),
        ({"content": b" " * (16 * 2**20 + 1), "headers": {"Content-Type": "application/json"}}, "over_limit"),
    ],
)
def test_so_does_what_cannot_be_read(pods: Pods, more: dict[str, Any], why: str) -> None:
    response = pods.ask(**more)
    assert (response.status_code, response.headers.get("x-kv-by-load")) == (200, why)
    assert response.headers[DESTINATION] in pods.at.values()
    pods.end(response)


def test_the_load_is_that_of_picks_that_are_not_over_by_their_size(pods: Pods) -> None:
    """Eight requests of half a megabyte, whose tokens nobody knows, are shared evenly; small ones go where fewer of them went."""
    large = [pods.ask("/v1/rerank", json={"model": "m", "documents": "x" * 500_000}) for _ in range(8)]
    assert [sum(pick.headers[DESTINATION] == at for pick in large) for at in pods.at.values()] == [4, 4]
    for pick in large:
        if pick.headers[DESTINATION] == pods.at["chats"]:
            pods.end(pick)
    for _ in range(4):
        assert pods.pick("/v1/rerank").headers[DESTINATION] == pods.at["chats"]
    for pick in large:
        pods.end(pick)


def test_a_request_without_a_model_is_for_the_only_one(pods: Pods) -> None:
    response = pods.ask("/v1/completions", json={"prompt": TEXT})
    assert (response.headers[DESTINATION], response.headers.get("x-kv-by-load")) == (pods.at["texts"], None)
    pods.end(response)


@pytest.mark.parametrize(
    ("content", "status", "kind", "said"),
    [
        (b"{", 400, "invalid_request_error", "the body is no JSON object"),
        (b"[]", 400, "invalid_request_error", "the body is no JSON object"),
        (b'{"model": "ghost", "prompt": "hi"}', 404, "not_found_error", "model: 'ghost' is not known"),
    ],
)
def test_little_is_refused_and_in_the_words_of_openai(pods: Pods, content: bytes, status: int, kind: str, said: str) -> None:
    outcome = {400: "malformed", 404: "unknown_model"}[status]
    before = pods.service.metric("kv_indexer_pick_requests_total", outcome=outcome)
    response = pods.ask("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"], error["param"]) == (status, kind, status, None)
    assert said in error["message"]
    assert pods.service.metric("kv_indexer_pick_requests_total", outcome=outcome) == before + 1


def test_a_pick_that_is_over_counts_no_more_also_by_the_route_s_own_way(pods: Pods) -> None:
    def is_open() -> float:
        return pods.service.metric("kv_indexer_route_open")

    before = is_open()
    first, second = (pods.ask("/v1/completions", json={"model": "m", "prompt": TEXT}) for _ in range(2))
    assert is_open() == before + 2
    pods.end(first)
    assert is_open() == before + 1
    answer = pods.service.http.post(f"{pods.service.url}/v1/route/done", json={"id": second.headers[ID]})
    assert (answer.json()["known"], is_open()) == (True, before)
    pods.end(first)  # again, which is no mistake


def test_where_nobody_tokenizes_or_it_takes_too_long_a_pod_is_picked_by_load(pods: Pods) -> None:
    def refuse(request: Request) -> Reply:
        return json_reply({"message": "no such role"}, 400)

    def fail(request: Request) -> Reply:
        return json_reply({"message": "broken"}, 500)

    def hang(request: Request) -> Reply:
        over.wait(60)
        return tokenize_bytes(request)

    over = Event()
    try:
        for number, (route, why) in enumerate(((refuse, "wrong_value"), (fail, "no_tokens"), (hang, "too_slow"))):
            for server in pods.servers.values():
                server.routes["/tokenize"] = route
            assert pods.pick("/v1/completions", prompt=f"{TEXT} {number}").headers["x-kv-by-load"] == why
    finally:
        over.set()
        for server in pods.servers.values():
            server.routes["/tokenize"] = tokenize_bytes


def test_sessions_stay_together_by_header_and_by_body() -> None:
    with ExitStack() as stack:
        engines = {f"127.0.0.1:{port}": stack.enter_context(Engine()) for port in (9001, 9002, 9003)}
        service = stack.enter_context(Running(*(engine.spec(pod) for pod, engine in engines.items()), route_policy="session", **PATIENT))
        for pod in engines:
            service.wait_for(pod=pod, trust="live")
        found = Pods(service, {})
        by_header = [found.pick("/v1/rerank", {"x-session-id": f"s{number % 8}"}).headers for number in range(16)]
        assert [each[DESTINATION] for each in by_header[:8]] == [each[DESTINATION] for each in by_header[8:]]
        assert len({each[DESTINATION] for each in by_header}) > 1
        assert {each["x-kv-picked-for"] for each in by_header} == {"session"}
        by_body = [found.pick("/v1/rerank", session_id=f"s{number}").headers[DESTINATION] for number in range(8)]
        assert by_body == [each[DESTINATION] for each in by_header[:8]]


def test_pods_whose_names_have_no_address_are_passed_over_and_how_many_fallbacks_there_are_is_a_setting() -> None:
    with ExitStack() as stack:
        engines = {pod: stack.enter_context(Engine()) for pod in ("no-such-host.invalid:8000", "127.0.0.1:9001", "127.0.0.1:9002", "127.0.0.1:9003")}
        unknown = next(iter(engines))
        service = stack.enter_context(Running(*(engine.spec(pod) for pod, engine in engines.items()), pick_fallbacks="1", **PATIENT))
        for pod in engines:
            service.wait_for(pod=pod, trust="live")
        engines[unknown].publish(stored([1], [1, 2, 3, 4]))
        service.wait_for(pod=unknown, sequence=0)
        found = Pods(service, {})
        headers = found.pick("/v1/completions", prompt=[1, 2, 3, 4, 5]).headers
        assert headers[DESTINATION] in engines
        assert headers[FALLBACKS] in engines
        assert headers[DESTINATION] != headers[FALLBACKS]
        assert service.metric("kv_indexer_route_open") == 0
        for pod in list(engines)[1:]:
            assert service.http.delete(f"{service.url}/v1/pods/{pod}").status_code == 204
        response = found.ask("/v1/completions", json={"model": "m", "prompt": [1]})
        assert (response.status_code, response.json()["error"]["type"]) == (503, "service_unavailable_error")
        assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("policy", ["refuse", "by-load"])
def test_with_several_models_an_unknown_one_is_refused_or_picked_by_load(policy: str) -> None:
    with (
        Engine() as a,
        Engine() as b,
        Running(a.spec("127.0.0.1:9001", "one"), b.spec("127.0.0.1:9002", "two"), pick_unknown_model=policy) as service,
    ):
        service.wait_for(pod="127.0.0.1:9001", trust="live")
        service.wait_for(pod="127.0.0.1:9002", trust="live")
        found = Pods(service, {})
        for body in ({"prompt": "hi"}, {"model": "ghost", "prompt": "hi"}):
            response = found.ask("/v1/completions", json=body)
            assert response.status_code == (404 if policy == "refuse" else 200)
            assert response.headers.get("x-kv-by-load") == (None if policy == "refuse" else "unknown_model")
        headers = {"x-gateway-model-name": "two"}
        assert found.ask("/v1/models", "GET", headers=headers).headers[DESTINATION] == "127.0.0.1:9002"


def test_without_any_pod_there_is_none_to_pick() -> None:
    with Running() as service:
        response = Pods(service, {}).ask("/v1/completions", json={"prompt": "hi"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
