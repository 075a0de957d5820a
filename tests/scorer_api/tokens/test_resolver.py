"""Scores of prompts and chats whose tokens an engine is asked for, over real HTTP and real ZMQ."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.engine import Engine, stored
from tests.engine_server import CutConnection, EngineServer, Reply, Request, Route, bytes_as_tokens, tokenize_bytes
from tests.processes import serve
from tests.running import Running
from tests.waiting import wait_until

PROMPT = "a prompt of some length"
MESSAGES = [{"role": "user", "content": "hello there"}]


class World(Running):
    """Pods of one model that have cached PROMPT and MESSAGES, each with an API of its own."""

    def __init__(self, *routes: Route, **settings: Any) -> None:
        self._stack = ExitStack()
        self.apis = [self._stack.enter_context(EngineServer(routes={"/tokenize": route})) for route in routes or (tokenize_bytes,)]
        self.engines = [self._stack.enter_context(Engine()) for _ in self.apis]
        for engine in self.engines:
            for number, asked in enumerate(({"prompt": PROMPT}, {"messages": MESSAGES})):
                tokens = bytes_as_tokens(asked)
                count = len(tokens) // 4
                engine.publish(stored(range(100 * number + 1, 100 * number + 1 + count), tokens[: 4 * count]))
        specs = [engine.spec(f"pod-{number}", http=api.url) for number, (engine, api) in enumerate(zip(self.engines, self.apis, strict=True))]
        super().__init__(*specs, **settings)

    def __enter__(self) -> "World":
        super().__enter__()
        for number in range(len(self.apis)):
            self.wait_for(pod=f"pod-{number}", sequence=1, trust="live")
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def post(self, **asked: Any) -> httpx.Response:
        return self.http.post(f"{self.url}/v1/score", json={"model": "m", **asked})

    def asked(self) -> int:
        return sum(len(api.tokenize_requests) for api in self.apis)

    def outcomes(self) -> dict[str, float]:
        outcomes = ("tokens", "refused", "status", "unreachable", "timeout", "malformed", "too_large", "outside")
        counts = {outcome: self.metric("kv_indexer_tokenize_requests_total", outcome=outcome) for outcome in outcomes}
        return {outcome: count for outcome, count in counts.items() if count}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World() as made:
        yield made


def matched(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [pod["matched_tokens"] for pod in response.json()["pods"]]


def test_a_prompt_is_scored_by_the_engines_own_tokens(world: World) -> None:
    answer = world.post(prompt=PROMPT)
    assert matched(answer) == [20]  # 23 bytes are 5 whole blocks of 4
    assert answer.json()["tokens"] == 23
    assert world.apis[0].tokenize_requests[-1] == {"model": "m", "prompt": PROMPT, "add_special_tokens": True}


def test_a_chat_is_scored_by_the_engines_own_tokens(world: World) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    answer = world.post(messages=MESSAGES, tools=tools, chat_template_kwargs={"a": [1, None]}, add_generation_prompt=False)
    assert (matched(answer), answer.json()["tokens"]) == ([8], 12)  # 11 bytes behind a 1,000: 3 whole blocks, of which a last one is never usable
    assert world.apis[0].tokenize_requests[-1] == {
        "model": "m",
        "messages": MESSAGES,
        "tools": tools,
        "chat_template_kwargs": {"a": [1, None]},
        "add_generation_prompt": False,
        "add_special_tokens": False,
    }


def test_a_chat_in_msgpack_is_the_same(world: World) -> None:
    body = msgspec.msgpack.encode({"model": "m", "messages": [{"role": "user", "content": "in msgpack"}], "tools": None, "chat_template_kwargs": {}})
    answer = world.http.post(f"{world.url}/v1/score", content=body, headers={"Content-Type": "application/msgpack"})
    assert answer.status_code == 200, answer.text
    assert world.apis[0].tokenize_requests[-1] == {
        "model": "m",
        "messages": [{"role": "user", "content": "in msgpack"}],
        "chat_template_kwargs": {},
        "add_generation_prompt": True,
        "add_special_tokens": False,
    }


def test_what_else_decides_the_tokens_of_a_chat_reaches_the_engine(world: World) -> None:
    """Documents and effort also as keyword arguments of the template: vLLM's chat completions add them there, its `/tokenize` does not."""
    documents, own = [{"title": "t", "text": "d"}], {"thinking": True, "documents": "ours"}
    more = {"documents": documents, "reasoning_effort": "low", "chat_template": "{{ x }}", "mm_processor_kwargs": {"fps": 1}}
    assert matched(world.post(messages=MESSAGES, chat_template_kwargs=own, continue_final_message=True, temperature=1, **more)) == [8]
    assert world.apis[0].tokenize_requests[-1] == {
        **{"model": "m", "messages": MESSAGES, "add_generation_prompt": False, "add_special_tokens": False, "continue_final_message": True},
        **more,
        "chat_template_kwargs": {"thinking": True, "documents": documents, "reasoning_effort": "low"},
    }
    assert matched(world.post(messages=MESSAGES, documents=documents)) == [8]
    assert world.apis[0].tokenize_requests[-1]["chat_template_kwargs"] == {"documents": documents}


def test_a_body_of_completions_may_have_what_only_chats_use(world: World) -> None:
    assert matched(world.post(prompt=PROMPT, reasoning_effort="low", documents=[], continue_final_message=False)) == [20]


def test_the_name_of_the_adapter_is_what_the_engine_is_asked_with(world: World) -> None:
    assert matched(world.post(prompt=PROMPT, lora_name="an-adapter")) == [0]
    assert world.apis[0].tokenize_requests[-1]["model"] == "an-adapter"


def test_tokens_are_asked_for_once(world: World) -> None:
    world.post(prompt="once")
    before, hits = world.asked(), world.metric("kv_indexer_tokenize_texts_total", source="cache")
    assert matched(world.post(prompt="once")) == [0]
    assert world.asked() == before
    assert world.metric("kv_indexer_tokenize_texts_total", source="cache") == hits + 1
    world.post(prompt="once", lora_name="other")
    assert world.asked() == before + 1


def test_nobody_is_asked_where_tokens_are_given_or_the_model_is_not_known(world: World) -> None:
    before = world.asked()
    assert world.post(token_ids=bytes_as_tokens({"prompt": PROMPT})).json()["best"] == "pod-0"
    unknown = world.http.post(f"{world.url}/v1/score", json={"model": "other", "prompt": PROMPT})
    assert unknown.status_code == 404
    assert world.asked() == before


def test_empty_and_other_than_english_prompts(world: World) -> None:
    assert world.post(prompt="").json()["tokens"] == 0
    assert world.post(prompt="日本語 🎉").json()["tokens"] == len("日本語 🎉".encode())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "exactly one of token_ids, prompt, messages"),
        ({"prompt": None, "messages": None}, "not as none of them"),
        ({"prompt": "a", "messages": []}, "not as prompt and messages"),
        ({"prompt": "a", "token_ids": [1]}, "not as token_ids and prompt"),
        ({"prompt": 1}, "prompt: "),
        ({"messages": {}}, "messages: should be a list of messages"),
        ({"messages": "a"}, "messages: should be a list of messages"),
        ({"messages": [], "tools": {}}, "tools: should be a list of tools"),
        ({"messages": [], "chat_template_kwargs": []}, "chat_template_kwargs: should be an object"),
        ({"prompt": "a", "tools": []}, "tools: goes with messages only"),
        ({"token_ids": [1], "chat_template_kwargs": {}}, "chat_template_kwargs: goes with messages only"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt: goes with messages only"),
        ({"messages": [], "tools": ["x" * 1_048_576]}, "tools: 1048580 bytes; at most 1048576 are taken"),
    ],
)
def test_what_does_not_go_together_is_named(world: World, asked: dict[str, Any], said: str) -> None:
    before = world.asked()
    refused = world.post(**asked)
    assert (refused.status_code, said in refused.json()["detail"]) == (422, True), refused.text
    assert world.asked() == before


def test_a_chat_that_is_no_utf8_is_malformed(world: World) -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}'
    refused = world.http.post(f"{world.url}/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400


def test_a_batch_takes_them_too(world: World) -> None:
    requests = [{"model": "m", "prompt": PROMPT}, {"model": "m", "messages": MESSAGES}, {"model": "m"}]
    answers = world.http.post(f"{world.url}/v1/score/batch", json={"requests": requests}).json()["answers"]
    assert [answer["pods"][0]["matched_tokens"] for answer in answers[:2]] == [20, 8]
    assert answers[2]["problem"]["status"] == 422


# Failures


def answering(content: bytes, status: int = 200) -> Route:
    return lambda _: (status, content)


def answer_too_late(request: Request) -> Reply:
    time.sleep(3)
    return tokenize_bytes(request)


def cut(request: Request) -> Reply:
    raise CutConnection


FAILURES: dict[str, tuple[Route, str, str]] = {
    "status": (answering(b'{"error": {"message": "out of\\norder"}}', 503), "status", "answered 503: out of order"),
    "not found": (answering(b'{"object": "error", "message": "no such model"}', 404), "status", "answered 404: no such model"),
    "a redirection": (answering(b"", 307), "status", "answered 307"),
    "no JSON": (answering(b"tokens!"), "malformed", "answered with what is not JSON"),
    "nothing": (answering(b""), "malformed", "answered with what is not JSON"),
    "no tokens": (answering(b'{"count": 1}'), "malformed", "other than tokens"),
    "texts": (answering(b'{"tokens": ["a"]}'), "malformed", "other than tokens"),
    "truths": (answering(b'{"tokens": [true]}'), "malformed", "other than tokens"),
    "fractions": (answering(b'{"tokens": [1.5]}'), "malformed", "other than tokens"),
    "below 0": (answering(b'{"tokens": [-1]}'), "malformed", "other than tokens"),
    "too high": (answering(b'{"tokens": [4294967296]}'), "malformed", "other than tokens"),
    "lists": (answering(b'{"tokens": [[1]]}'), "malformed", "other than tokens"),
    "another count": (answering(b'{"tokens": [1, 2], "count": 3}'), "malformed", "2 tokens and says that they are 3"),
    "nesting": (answering(b'{"tokens": ' + b"[" * 100_000), "malformed", "answered with"),
    "a huge answer": (answering(b'{"tokens": [' + b"1," * 1_000_000 + b"1]}"), "too_large", "more than 1000000 bytes"),
    "a cut connection": (cut, "unreachable", "cannot be reached"),
    "silence": (answer_too_late, "timeout", "did not answer within 0.5 s"),
}
QUICKLY = {"tokenize_timeout_s": "0.5", "tokenize_answer_bytes_max": "1000000"}


@pytest.mark.rule("C16")
@pytest.mark.parametrize("name", FAILURES)
def test_what_an_engine_answers_wrongly_is_counted_and_another_one_asked(name: str) -> None:
    route, outcome, why = FAILURES[name]
    with World(route, route, **QUICKLY) as world:
        failed = world.post(prompt=PROMPT)
        assert failed.status_code == 502
        assert failed.headers["content-type"] == "application/problem+json"
        detail = failed.json()["detail"]
        assert [f"{pod} {why}" in detail or (f"{pod} answered" in detail and why in detail) for pod in ("pod-0", "pod-1")] == [True, True], detail
        assert world.outcomes() == {outcome: 2}
        assert world.metric("kv_indexer_score_requests_total", outcome="no_tokens") == 1
        world.apis[1].routes["/tokenize"] = tokenize_bytes
        # The one that failed last is no worse than the other: whichever is first, one of the two has them.
        assert matched(world.post(prompt=PROMPT)) == [20, 20]
        asked = len(world.apis[0].tokenize_requests)
        for number in range(8):
            world.post(prompt=f"{PROMPT}{number}")
        assert len(world.apis[0].tokenize_requests) <= asked + 1, "a pod that just failed is asked after the others"


def test_engines_that_refuse_the_text_say_so_to_whoever_asked() -> None:
    refusal = answering(b'{"error": {"message": "Unexpected message role.", "type": "BadRequestError"}}', 400)
    with World(refusal, refusal) as world:
        refused = world.post(messages=MESSAGES)
        assert refused.status_code == 422
        assert "messages: the engine refuses it: " in refused.json()["detail"]
        assert refused.json()["detail"].count("answered 400: Unexpected message role.") == 2
        assert world.outcomes() == {"refused": 2}


def test_an_engine_that_is_not_there_is_named() -> None:
    with Engine() as engine, Running(engine.spec(http="http://127.0.0.1:9")) as service:
        service.wait_for(connected=True)
        failed = service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": PROMPT})
        assert failed.status_code == 502
        assert "prompt: no engine tokenized it: pod cannot be reached: " in failed.json()["detail"]


def test_a_pods_name_that_is_no_address_is_told_of_with_what_would_be_right() -> None:
    with Engine() as engine, Running(engine.spec("a@b")) as service:
        service.wait_for(pod="a@b", connected=True)
        detail = service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": PROMPT}).json()["detail"]
        assert "say http=http://host:port in the pod's spec" in detail


def test_a_pods_name_is_where_its_api_is_unless_it_is_said() -> None:
    with EngineServer(routes={"/tokenize": tokenize_bytes}) as api, Engine() as engine, Running(engine.spec(api.netloc)) as service:
        service.wait_for(pod=api.netloc, connected=True)
        answer = service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": PROMPT})
        assert answer.json()["tokens"] == 23
        assert service.http.get(f"{service.url}/v1/pods").json()["pods"][0]["http"] == f"http://{api.netloc}"


def test_an_api_below_a_path() -> None:
    with (
        EngineServer(routes={"/tokenize": tokenize_bytes}, base_path="/vllm/a") as api,
        Engine() as engine,
        Running(engine.spec(http=api.url + "/")) as service,
    ):
        service.wait_for(connected=True)
        assert service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": PROMPT}).status_code == 200


def test_no_pod_that_could_be_asked() -> None:
    with Running() as service:
        assert service.http.put(f"{service.url}/v1/pods/p", json={"model": "m", "events": "tcp://127.0.0.1:9"}).status_code == 201
        answer = service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": PROMPT})
        # It may be away, and is asked all the same, until it is expired.
        assert (answer.status_code, "p " in answer.json()["detail"]) == (502, True)


def test_requests_are_spread_over_the_pods() -> None:
    with World(tokenize_bytes, tokenize_bytes, tokenize_bytes) as world:
        for number in range(60):
            world.post(prompt=f"prompt {number}")
        counts = [len(api.tokenize_requests) for api in world.apis]
        assert sum(counts) == 60
        assert min(counts) >= 5  # 20 each on the average: fewer than 5 anywhere happens once in 100,000 times


def test_equal_requests_at_the_same_time_are_one_and_who_leaves_stops_nobody() -> None:
    arrived, may_answer = threading.Event(), threading.Event()

    def slowly(request: Request) -> Reply:
        arrived.set()
        may_answer.wait(60)
        return tokenize_bytes(request)

    with World(slowly, tokenize_timeout_s="60") as world, ThreadPoolExecutor(8) as pool:
        # The first one, for whom the engine is asked, leaves before there is an answer.
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{world.url}/v1/score", json={"model": "m", "prompt": "leaves"}, timeout=0.3)
        answers = [pool.submit(world.post, prompt=PROMPT) for _ in range(8)]
        assert arrived.wait(30)
        wait_until(lambda: sum(asked["prompt"] == PROMPT for asked in world.apis[0].tokenize_requests) == 1)
        may_answer.set()
        assert [matched(answer.result(30)) for answer in answers] == [[20]] * 8
        assert sum(asked["prompt"] == PROMPT for asked in world.apis[0].tokenize_requests) == 1
        found = {source: world.metric("kv_indexer_tokenize_texts_total", source=source) for source in ("shared", "cache", "engine")}
        assert found["shared"] + found["cache"] >= 7


def test_without_room_nothing_is_remembered() -> None:
    with World(tokenize_cache_entries_max="0") as world:
        for _ in range(3):
            assert matched(world.post(prompt=PROMPT)) == [20]
        assert world.asked() == 3
        assert world.metric("kv_indexer_tokenize_cache_bytes") == 0


@pytest.mark.rule("C16")
def test_the_engines_key_is_sent_read_again_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("secret-one\n")
    with EngineServer(routes={"/tokenize": tokenize_bytes}) as api, Engine() as engine:
        refusing = answering(b'{"error": "Unauthorized"}', 401)
        with serve(None, engine.spec(http=api.url), engine_api_key_file=str(file)) as service:
            service.wait_url()
            service.wait_for(connected=True)
            service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": "1"})
            assert api.tokenize_headers[-1]["authorization"] == "Bearer secret-one"
            file.write_text("secret-two-that-is-longer\n")
            service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": "2"})
            assert api.tokenize_headers[-1]["authorization"] == "Bearer secret-two-that-is-longer"
            file.write_text("no key!\n")
            api.routes["/tokenize"] = refusing
            failed = service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": "3"})
            assert api.tokenize_headers[-1]["authorization"] == "Bearer secret-two-that-is-longer"
            assert failed.json()["detail"].startswith("prompt: no engine tokenized it: pod answered 401: Unauthorized")
            wait_until(lambda: any("engines' key not read again" in line for line in service.lines))
            shown = [*service.lines, failed.text, service.http.get(f"{service.url}/metrics").text, service.http.get(f"{service.url}/v1/pods").text]
            assert [text for text in shown if "secret-" in text] == []


def test_a_key_file_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    with serve(None, engine_api_key_file=str(tmp_path / "none")) as service:
        assert service.process.wait(30) == 2
    assert "--engine-api-key-file=" in service.lines[0]


def test_json_of_engines_with_more_fields_is_taken() -> None:
    more = answering(json.dumps({"tokens": [1, 2], "count": 2, "max_model_len": 1, "new": {"a": None}}).encode())
    with World(more) as world:
        assert world.post(prompt=PROMPT).json()["tokens"] == 2
