"""`kv-indexer demo`, and the engines that it starts."""

import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.compiled import ACTIVE
from indexer.engines.load import Load
from indexer.engines.load_metrics import LoadMeter
from indexer.engines.spec import EngineSpec
from indexer.simulation.demo_api import serving
from indexer.simulation.demo_completions import Completion, CompletionRequest, Kind
from indexer.simulation.demo_engine import BLOCK_SIZE, CHAT_TOKENS_MAX, SYSTEM_PROMPT, TURN_TOKENS, BlockCache, chat_workload, dial_host
from indexer.simulation.demo_tokenizer import tokenize
from tests.command import environment, run, start
from tests.running import ROOT, Client, Running
from tests.waiting import wait_until

PROMPT = [*range(1, 65), *range(11001, 11066)]


class Demo(Client):
    """The command, with what it printed so far."""

    def __init__(self) -> None:
        super().__init__()
        words = [sys.executable, "-m", "scorer_api.cli", "demo", "--port", "0"]
        self.process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.printed = ""
        self.logged = ""
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_output, self._read_log)]
        for reader in self._readers:
            reader.start()

    def _read_output(self) -> None:
        for line in self.process.stdout or ():
            self.printed += line

    def _read_log(self) -> None:
        for line in self.process.stderr or ():
            self.logged += line

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in text.split()]


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    demo = Demo()
    try:
        wait_until(lambda: "Ctrl-C" in demo.printed or demo.process.poll() is not None, 60)
        found = re.search(r"http://127\.0\.0\.1:\d+", demo.printed)
        assert found, demo.logged
        demo.url = found[0]
        for pod in ("demo-0", "demo-1"):
            demo.wait_for(pod=pod, trust="live")
        yield demo
    finally:
        demo.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


# The command


def test_it_says_what_to_try(demo: Demo) -> None:
    for word in ("curl", "/v1/score", "score --url", "/v1/pods", "/metrics", "/docs", "Ctrl-C"):
        assert word in demo.printed


def test_it_serves_two_pods_of_one_model(demo: Demo) -> None:
    assert demo.http.get(f"{demo.url}/v1/models").json() == {"models": [{"model": "demo/chat", "pods": ["demo-0", "demo-1"]}]}
    assert demo.http.get(f"{demo.url}/readyz").json() == {"status": "ready", "reasons": [], "core": ACTIVE}


def test_the_prompt_of_the_example_is_held_by_demo_1(demo: Demo) -> None:
    assert len(PROMPT) == 129
    # The chat that is served every other time stays cached, and grows or begins anew.
    wait_until(lambda: demo.matched(PROMPT, "demo-1", "demo/chat") == 128)
    answer = demo.score(PROMPT, "demo/chat")
    assert answer["best"] == "demo-1"
    # The other one shares the 64 tokens of the system prompt.
    assert [pod["matched_tokens"] for pod in answer["pods"] if pod["pod"] == "demo-0"] == [64]


# The engine evicts the chat and stores it again, over and over: an example is right whenever it is held.
WHOLE_CHAT_S = 90.0


def run_printed(demo: Demo, start: str) -> str:
    """Run the example that begins with these words in a shell, as it was printed. Returns what it prints."""
    (example,) = re.findall(rf"^  ({re.escape(start)}(?:.*\\\n)*.*)$", demo.printed, re.MULTILINE)
    done = subprocess.run(["/bin/bash", "-c", example], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_request_works_as_it_stands(demo: Demo) -> None:
    def shows_the_chat() -> bool:
        answer = json.loads(run_printed(demo, "curl -s " + demo.url + "/v1/score"))
        return (answer["best"], answer["pods"][0]["matched_tokens"], answer["tokens"]) == ("demo-1", 128, 129)

    wait_until(shows_the_chat, WHOLE_CHAT_S)


def test_the_printed_score_command_works_as_it_stands(demo: Demo) -> None:
    def shows_the_chat() -> bool:
        first, _, row, *_ = run_printed(demo, "(seq 1 64").splitlines()
        return first == "model demo/chat, 129 tokens, best: demo-1" and row.split()[:4] == ["demo-1", "1.0000", "128", "8/8"]

    wait_until(shows_the_chat, WHOLE_CHAT_S)


def test_a_printed_prompt_works_as_it_stands(demo: Demo) -> None:
    command = next(line.strip() for line in demo.printed.splitlines() if "--prompt" in line)
    wait_until(lambda: run_printed(demo, command).splitlines()[0] == "model demo/chat, 129 tokens, best: demo-1", WHOLE_CHAT_S)


class Served:
    """An engine that completes nothing."""

    model = "demo/chat"

    def metrics(self) -> str:
        return "figures"

    def complete(self, request: CompletionRequest, kind: Kind) -> Completion:
        raise AssertionError("nobody asks for it")


def test_demo_engines_tokenize_words_as_one_can_follow_them() -> None:
    word = tokenize("word")
    assert tokenize(" 7 word\n12 word 999999999 ") == [7, *word, 12, *word, *tokenize("999999999")]
    assert [2_000_000 <= token < 3_000_000 for token in (*word, *tokenize("999999999"))] == [True, True]
    assert tokenize("") == []


@pytest.mark.parametrize(
    ("body", "status", "tokens"),
    [
        ({"prompt": "1 2 3", "add_special_tokens": True}, 200, [1, 2, 3]),
        ({"messages": [{"role": "user", "content": "1 2"}, {"role": "user", "content": "3"}], "add_generation_prompt": True}, 200, [1, 2, 3]),
        ({"prompt": ""}, 200, []),
        ({"prompt": 1}, 400, None),
        ([], 400, None),
    ],
)
def test_demo_engines_answer_like_vllm(body: Any, status: int, tokens: list[int] | None) -> None:
    with serving("127.0.0.1", 0, Served()) as port:
        answer = httpx.post(f"http://127.0.0.1:{port}/tokenize", json=body)
        assert answer.status_code == status
        if tokens is not None:
            assert (answer.json()["tokens"], answer.json()["count"]) == (tokens, len(tokens))
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").text == "figures"
        assert httpx.post(f"http://127.0.0.1:{port}/elsewhere", json={}).status_code == 404


def api_of(demo: Demo, pod: str) -> str:
    (base,) = (each["http"] for each in demo.http.get(f"{demo.url}/v1/pods").json()["pods"] if each["pod"] == pod)
    return str(base)


def test_a_demo_engine_answers_chats_and_tells_what_it_had_in_its_cache(demo: Demo) -> None:
    url = f"{api_of(demo, 'demo-0')}/v1/chat/completions"
    words = " ".join(f"word-{number}" for number in range(40))
    chat = [{"role": "user", "content": words}]
    first = demo.http.post(url, json={"model": "demo/chat", "messages": chat, "temperature": 0}).json()
    assert (first["object"], first["model"], first["choices"][0]["finish_reason"]) == ("chat.completion", "demo/chat", "stop")
    assert first["choices"][0]["message"] == {"role": "assistant", "content": "This is demo-0, which had 0 of 40 tokens in its cache."}
    assert first["usage"] == {"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52, "prompt_tokens_details": {"cached_tokens": 0}}
    chat += [first["choices"][0]["message"], {"role": "user", "content": "and more"}]
    second = demo.http.post(url, json={"model": "demo/chat", "messages": chat, "max_completion_tokens": 3}).json()
    assert second["choices"][0]["message"]["content"] == "This is demo-0,"
    assert (second["choices"][0]["finish_reason"], second["usage"]["prompt_tokens_details"]) == ("length", {"cached_tokens": 48})
    prompt = f"{words} {first['choices'][0]['message']['content']} and more"
    wait_until(lambda: [p for p in demo.score(tokenize(prompt), "demo/chat")["pods"] if (p["pod"], p["matched_tokens"]) == ("demo-0", 48)] != [])


def test_a_demo_engine_streams_words(demo: Demo) -> None:
    url = f"{api_of(demo, 'demo-1')}/v1/chat/completions"
    body = {"model": "demo/chat", "messages": [{"role": "user", "content": "x"}], "stream": True, "stream_options": {"include_usage": True}}
    with demo.http.stream("POST", url, json=body) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert (response.headers["content-type"], events[-1]) == ("text/event-stream; charset=utf-8", "[DONE]")
    *words, end, usage = map(json.loads, events[:-1])
    assert "".join(word["choices"][0]["delta"]["content"] for word in words) == "This is demo-1, which had 0 of 1 tokens in its cache."
    assert (len(words), words[0]["choices"][0]["delta"]["role"], end["choices"][0]["finish_reason"]) == (12, "assistant", "stop")
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 12)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("completions", {"prompt": "1 2 3", "max_tokens": 2}, 200, "This is"),
        ("completions", {"prompt": [1, 2, 3]}, 200, "of 3 tokens"),
        ("completions", {"prompt": [[1, 2]]}, 200, "of 2 tokens"),
        ("completions", {"prompt": ["1 2"]}, 200, "of 2 tokens"),
        ("completions", {"prompt": {"text": 1}}, 400, "BadRequestError"),
        ("chat/completions", {"messages": "hello"}, 400, "BadRequestError"),
        ("chat/completions", {"messages": [], "model": "other"}, 404, "The model `other` does not exist."),
    ],
)
def test_a_demo_engine_takes_what_engines_take(demo: Demo, path: str, body: dict[str, Any], status: int, said: str) -> None:
    response = demo.http.post(f"{api_of(demo, 'demo-0')}/v1/{path}", json={"model": "demo/chat", **body})
    assert (response.status_code, said in response.text) == (status, True), response.text


def test_a_demo_engine_takes_bodies_in_chunks_and_names_its_model(demo: Demo) -> None:
    base = api_of(demo, "demo-0")
    pieces = iter([b'{"prompt": "1 ', b'2 3"}'])
    assert demo.http.post(f"{base}/tokenize", content=pieces).json()["tokens"] == [1, 2, 3]
    assert [model["id"] for model in demo.http.get(f"{base}/v1/models").json()["data"]] == ["demo/chat"]


def test_the_doctor_finds_nothing_wrong_with_the_demo(demo: Demo) -> None:
    code, out, _ = run("doctor", "--url", demo.url, "--model", "demo/chat", "--probe", "--listen-s", "1")
    assert (code, "WARNING" in out, out.count("probe_well")) == (0, False, 2), out


def test_who_hangs_up_is_no_reason_for_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("127.0.0.1", 0, Served()) as port:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
                client.recv(1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # hangs up with a reset
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        wait_until(lambda: sum("process_request_thread" in thread.name for thread in threading.enumerate()) <= 1)  # httpx keeps none
    assert "Traceback" not in capsys.readouterr().err


def test_what_docs_would_send_is_answered(demo: Demo) -> None:
    """*Try it out* in /docs sends the examples of the OpenAPI document as they stand."""
    document = demo.http.get(f"{demo.url}/openapi.json").json()
    asked = []
    for path, operations in document["paths"].items():
        for method in sorted(operations, key=["get", "post", "put", "delete"].index):
            operation = operations[method]
            named = {parameter["name"]: parameter.get("example", "") for parameter in operation.get("parameters", ()) if parameter["required"]}
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            body = None if content is None else content["example"]
            response = demo.http.request(method, demo.url + path.format(**named), json=body)
            assert response.status_code < 300, (method, path, response.text)
            asked.append((method, path, response))
    assert {path for method, path, _ in asked if method == "post"} >= {"/v1/score", "/v1/score/batch", "/v1/route", "/v1/explain", "/v1/pick"}
    (score,) = (response.json() for _, path, response in asked if path == "/v1/score")
    assert [pod["matched_tokens"] for pod in score["pods"]] == [64, 64]


def test_the_loads_of_demo_engines_are_known(demo: Demo) -> None:
    def loads() -> list[Any]:
        answer = demo.http.post(f"{demo.url}/v1/route", json={"model": "demo/chat", "token_ids": PROMPT}).json()
        return [(why["running"], why["waiting"], why["kv_usage"]) for why in answer["reason"].values()]

    wait_until(lambda: loads() == [(0, 0, 0.0), (0, 0, 0.0)])


def test_a_demo_engine_counts_what_it_serves() -> None:
    cache = BlockCache(10)
    cache.serve([1] * 40)
    cache.serve([1] * 50)
    load = LoadMeter().read(cache.metrics(), 1.0)
    assert load == Load(0, 0, 0.0, 45.0, None, 160.0, requests=2)
    # 2 of the second prompt's blocks were there.
    assert "vllm:prefix_cache_hits_total 32.0\n" in cache.metrics()


def test_stores_and_evictions_keep_coming(demo: Demo) -> None:
    def counts() -> tuple[float, float]:
        return demo.metric("kv_indexer_blocks_stored_total", tier="gpu"), demo.metric("kv_indexer_blocks_removed_total", tier="gpu")

    stored, removed = counts()
    wait_until(lambda: counts()[0] > stored and counts()[1] > removed, 60)
    assert demo.metric("kv_indexer_refused_total") == 0
    assert demo.metric("kv_indexer_orphans_total") == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_run_says_how_to_take_another_port() -> None:
    """With the environment of the tests in place of the one that make would install."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["make", "run", f"PORT={port}", "READY=", f"BIN={Path(sys.executable).parent}"]
        made = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60)
    assert made.returncode != 0
    assert f"127.0.0.1:{port}" in made.stderr
    assert f"If port {port} is taken: make run PORT=8081" in made.stderr


def test_sigterm_takes_everything_down() -> None:
    demo = Demo()
    try:
        wait_until(lambda: "Ctrl-C" in demo.printed or demo.process.poll() is not None, 60)
        children = demo.children()
        assert len(children) == 2
        assert all(is_running(child) for child in children)
        demo.process.send_signal(signal.SIGTERM)
        assert demo.process.wait(10) == 0
        assert [child for child in children if is_running(child)] == []
    finally:
        demo.close()
    assert "Traceback" not in demo.logged


def test_an_engine_that_is_killed_does_not_take_the_demo_down() -> None:
    demo = Demo()
    try:
        wait_until(lambda: "Ctrl-C" in demo.printed or demo.process.poll() is not None, 60)
        found = re.search(r"http://127\.0\.0\.1:\d+", demo.printed)
        assert found, demo.logged
        demo.url = found[0]
        demo.wait_for(pod="demo-0", trust="live")
        for child in demo.children():
            os.kill(child, signal.SIGKILL)
        demo.wait_for(pod="demo-0", trust="stale", connected=False)
        demo.process.send_signal(signal.SIGTERM)
        assert demo.process.wait(10) == 0
    finally:
        demo.close()


def test_a_demo_engine_prints_its_spec_and_stops_on_sigterm() -> None:
    process = start("demo-engine", "--pod", "p/1", "--model", "x/y", "--chats", "3,4")
    assert process.stdout is not None
    spec = process.stdout.readline().strip()
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert re.fullmatch(
        r"pod=p/1,model=x/y,events=tcp://127\.0\.0\.1:\d+,replay=tcp://127\.0\.0\.1:\d+,http=http://127\.0\.0\.1:\d+,snapshot=replay", spec
    )
    assert (process.returncode, err) == (0, "")


def test_a_demo_engine_listens_where_it_is_told_to() -> None:
    process = start("demo-engine", "--host", "127.0.0.2", "--chats", "3")
    try:
        assert process.stdout is not None
        spec = process.stdout.readline().strip()
        assert spec.count("tcp://127.0.0.2:") == 2
        with Running(spec) as service:
            service.wait_for(pod="demo-0", trust="live")
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_a_demo_engine_listens_at_an_ipv6_address() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    process = start("demo-engine", "--host", "::1", "--chats", "3")
    try:
        assert process.stdout is not None
        spec = EngineSpec.from_text(process.stdout.readline().strip())
        assert (spec.events or "").startswith("tcp://[::1]:")
        assert httpx.get(f"{spec.http}/health").status_code == 200
        with Running(f"pod=p,model=m,events={spec.events},replay={spec.replay}") as service:
            wait_until(lambda: (service.stream(pod="p")["sequence"] or 0) > 0)
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_a_demo_engine_that_listens_everywhere_is_dial_host_by_its_machine_s_name() -> None:
    assert [dial_host(host) for host in ("0.0.0.0", "*", "10.0.0.7", "::1")] == [socket.gethostname()] * 2 + ["10.0.0.7", "[::1]"]  # noqa: S104


def test_a_demo_engine_says_where_it_cannot_listen() -> None:
    code, _, err = run("demo-engine", "--host", "192.0.2.1", "--events-port", "5557", timeout_s=30)
    assert code == 2
    assert "--host" in err
    assert "192.0.2.1" in err


# The cache


def stored_hashes(events: list[dict[str, Any]]) -> list[int]:
    return [engine_hash for event in events if event["type"] == "BlockStored" for engine_hash in event["block_hashes"]]


def removed_hashes(events: list[dict[str, Any]]) -> list[int]:
    return [engine_hash for event in events if event["type"] == "BlockRemoved" for engine_hash in event["block_hashes"]]


def sequence(first: int, blocks: int) -> list[int]:
    return list(range(first, first + blocks * BLOCK_SIZE))


def test_whole_blocks_are_stored_and_the_rest_is_not() -> None:
    (event,) = BlockCache(10).serve([*sequence(1, 2), 99])
    assert (event["type"], event["parent_block_hash"], event["block_size"]) == ("BlockStored", None, 16)
    assert event["token_ids"] == sequence(1, 2)
    hashes = event["block_hashes"]
    assert isinstance(hashes, list)
    assert len(set(hashes)) == 2
    assert all(0 <= engine_hash < 2**64 for engine_hash in hashes)


def test_too_few_tokens_for_a_block_say_nothing() -> None:
    assert BlockCache(10).serve([1] * (BLOCK_SIZE - 1)) == []


def test_what_is_cached_is_not_stored_again() -> None:
    cache = BlockCache(10)
    first = stored_hashes(cache.serve(sequence(1, 2)))
    assert cache.serve(sequence(1, 2)) == []
    (event,) = cache.serve(sequence(1, 4))
    assert event["parent_block_hash"] == first[1]
    assert event["token_ids"] == sequence(1 + 2 * BLOCK_SIZE, 2)


def test_equal_tokens_behind_another_beginning_are_other_blocks() -> None:
    cache = BlockCache(10)
    one = stored_hashes(cache.serve([*sequence(1, 1), *sequence(500, 1)]))
    other = stored_hashes(cache.serve([*sequence(900, 1), *sequence(500, 1)]))
    assert len({*one, *other}) == 4


def test_the_least_recently_used_goes_first_and_its_leaf_before_its_root() -> None:
    cache = BlockCache(4)
    old = stored_hashes(cache.serve(sequence(1, 2)))
    kept = stored_hashes(cache.serve(sequence(1000, 2)))
    assert removed_hashes(cache.serve(sequence(2000, 1))) == [old[1]]
    assert removed_hashes(cache.serve(sequence(3000, 1))) == [old[0]]
    cache.serve(sequence(1000, 2))
    third = removed_hashes(cache.serve(sequence(4000, 2)))
    assert not set(third) & set(kept)
    assert len(third) == 2


def test_evictions_are_said_before_what_took_their_place() -> None:
    cache = BlockCache(1)
    cache.serve(sequence(1, 1))
    assert [event["type"] for event in cache.serve(sequence(1000, 1))] == ["BlockRemoved", "BlockStored"]


def test_a_step_never_evicts_what_it_uses() -> None:
    cache = BlockCache(3)
    cache.serve(sequence(1000, 1))
    head = stored_hashes(cache.serve(sequence(1, 2)))
    events = cache.serve(sequence(1, 3))
    assert not set(removed_hashes(events)) & set(head)
    assert len(stored_hashes(events)) == 1


def test_a_sequence_longer_than_the_cache_is_cached_from_its_beginning() -> None:
    cache = BlockCache(2)
    (event,) = cache.serve(sequence(1, 5))
    assert event["token_ids"] == sequence(1, 2)


def test_what_it_said_is_what_it_holds_after_a_long_run() -> None:
    cache = BlockCache(40)
    held: set[int] = set()
    for tokens in islice(chat_workload([1, 2, 3, 4], random.Random(1)), 300):
        for event in cache.serve(tokens):
            hashes = stored_hashes([event]) or removed_hashes([event])
            if event["type"] == "BlockStored":
                assert not held & set(hashes)
                assert event["parent_block_hash"] is None or event["parent_block_hash"] in held
                held |= set(hashes)
            else:
                assert held >= set(hashes)
                held -= set(hashes)
        assert len(held) <= 40


def test_the_workload_shares_the_system_prompt_and_grows_by_turns() -> None:
    seen: dict[int, int] = {}
    for tokens in islice(chat_workload([5, 6], random.Random(2)), 200):
        assert tokens[:64] == list(SYSTEM_PROMPT)
        chat = tokens[64] // 1000
        length = len(tokens) - 64
        assert chat in (5, 6)
        assert tokens[64:] == list(range(1000 * chat + 1, 1000 * chat + 1 + length))
        before = seen.get(chat, 0)
        assert length == (before + TURN_TOKENS if before < CHAT_TOKENS_MAX else TURN_TOKENS)
        seen[chat] = length
    assert set(seen) == {5, 6}
