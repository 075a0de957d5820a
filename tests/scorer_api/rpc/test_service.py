"""The scorer over real gRPC, beside the same over HTTP."""

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from tests.engine import Engine, stored
from tests.gateway import Gateway
from tests.ports import free_port
from tests.running import Client, Running
from tests.scorer_stub import TIMEOUT_S, messages, refusal, stub_of
from tests.waiting import wait_until

TOKENS = list(range(1, 18))
TOKEN = "a-token-of-clients"  # noqa: S105
BODY_BYTES_MAX = 100_000
FLAGS = {
    **{"route_seed": "1", "route_speculative_s": "0", "route_forget_s": "600", "load_interval_s": "0", "gateway_notice_s": "0.001"},
    **{"watch_interval_s": "0.01", "body_bytes_max": str(BODY_BYTES_MAX)},
}
WITHOUT_TOKEN = grpc.StatusCode.UNAUTHENTICATED


class Scorer:
    """A service with two pods, the first of which holds TOKENS; asked with a token."""

    def __init__(self, service: Client, engines: dict[str, Engine], gateway: Gateway) -> None:
        self.service = service
        self.engines = engines
        self.gateway = gateway
        self.stub = stub_of(gateway.channel)

    def ask(self, method: str, request: Any, *metadata: tuple[str, str]) -> Any:
        return getattr(self.stub, method)(request, timeout=TIMEOUT_S, metadata=metadata or (("authorization", f"Bearer {TOKEN}"),))

    def refused(self, method: str, request: Any, *metadata: tuple[str, str]) -> tuple[grpc.StatusCode, Any, Any]:
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(method, request, *metadata)
        return refusal(caught.value)

    def calls(self, method: str, code: str) -> float:
        return self.service.metric("kv_indexer_rpc_calls_total", method=method, code=code)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scorer]:
    port, tokens = free_port(), tmp_path_factory.mktemp("tokens") / "api"
    Path(tokens).write_text(TOKEN)
    with ExitStack() as stack:
        engines = {pod: stack.enter_context(Engine()) for pod in ("first", "second")}
        specs = [engine.spec(pod) for pod, engine in engines.items()]
        service = stack.enter_context(Running(*specs, gateway_listen=f"127.0.0.1:{port}", api_token_file=str(tokens), **FLAGS))
        service.http.headers["authorization"] = f"Bearer {TOKEN}"
        service.wait_for(pod="first", sequence=engines["first"].publish(stored([1, 2, 3, 4], TOKENS[:16])))
        service.wait_for(pod="second", sequence=engines["second"].publish(stored([5], [90, 91, 92, 93])))
        yield Scorer(service, engines, stack.enter_context(Gateway(port)))


def plain(answer: Any) -> Any:
    """The message as JSON has it, in the types that JSON has over HTTP."""
    return MessageToDict(answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def alike(over_grpc: Any, over_http: Any) -> bool:
    """Whether both say the same. JSON writes 64-bit numbers of protobuf as texts, and there null as a field that is not there. Ages differ."""
    if isinstance(over_http, dict):
        assert over_grpc.keys() <= over_http.keys()
        return all(name.endswith("age_s") or alike(over_grpc.get(name), value) for name, value in over_http.items())
    if isinstance(over_http, list):
        if isinstance(over_grpc, dict):  # a pair
            over_grpc = list(over_grpc.values())
        return len(over_grpc) == len(over_http) and all(map(alike, over_grpc, over_http))
    return bool(over_grpc == over_http or (isinstance(over_http, int) and over_grpc == str(over_http)))


def over_http(asked: Scorer, path: str, **body: Any) -> Any:
    answer = asked.service.http.post(f"{asked.service.url}{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_score_says_what_it_says_over_http(asked: Scorer) -> None:
    fields = {"model": "m", "token_ids": TOKENS, "pods": ["first", "second", "ghost"]}
    answer = asked.ask("Score", messages.ScoreRequest(**fields))
    assert (answer.best, answer.pods[0].matched_tokens, answer.pods[0].score) == ("first", 16, 1.0)
    found = plain(answer)
    assert found.pop("unknown_pods") == ["ghost"]
    expected = over_http(asked, "/v1/score", **fields)
    assert expected.pop("unknown_pods") == ["ghost"]
    assert alike(found, expected)


def test_a_batch_says_what_it_says_over_http(asked: Scorer) -> None:
    """In its order, with a problem in place of an answer that there is not."""
    requests = [
        *({"model": "m", "token_ids": TOKENS[:size]} for size in (17, 9, 5)),
        {"model": "ghost", "token_ids": [1]},
        {"model": "m", "token_ids": TOKENS, "limit": 0},
        {"model": "m", "token_ids": TOKENS, "limit": 1},
    ]
    before = asked.service.metric("kv_indexer_score_requests_total", outcome="unknown_model")
    answer = asked.ask("ScoreBatch", messages.ScoreBatchRequest(requests=[messages.ScoreRequest(**fields) for fields in requests]))
    expected = over_http(asked, "/v1/score/batch", requests=requests)["answers"]
    assert [item.WhichOneof("item") for item in answer.answers] == ["answer", "answer", "answer", "problem", "problem", "answer"]
    for item, over in zip(answer.answers, expected, strict=True):
        found = plain(item)
        if "problem" in over:
            assert found["problem"] == over["problem"]
        else:
            assert found["answer"].pop("unknown_pods") == []
            assert alike(found["answer"], over)
    assert asked.service.metric("kv_indexer_score_requests_total", outcome="unknown_model") == before + 2
    assert plain(asked.ask("ScoreBatch", messages.ScoreBatchRequest())) == {"answers": []}


def test_answers_to_a_batch_have_so_many_bytes_together(asked: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are one message, which is put together in memory. Up to eight are in progress when it is full."""
    monkeypatch.setattr("scorer_api.rpc.service.BATCH_ANSWER_BYTES_MAX", 1)
    request = messages.ScoreBatchRequest(requests=[messages.ScoreRequest(model="m", token_ids=TOKENS)] * 20)
    answers = asked.ask("ScoreBatch", request).answers
    kinds = [item.WhichOneof("item") for item in answers]
    assert (kinds[0], kinds[8:]) == ("answer", ["problem"] * 12)
    assert (answers[-1].problem.status, "limit" in answers[-1].problem.detail) == (413, True)


def test_a_batch_has_so_many_requests_at_most(asked: Scorer) -> None:
    request = messages.ScoreBatchRequest(requests=[messages.ScoreRequest(model="m", token_ids=[1])] * 257)
    code, problem, _ = asked.refused("ScoreBatch", request)
    assert (code, problem.status, problem.detail) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        422,
        "requests: there are more than 256; send at most so many at once",
    )
    assert len(asked.ask("ScoreBatch", messages.ScoreBatchRequest(requests=list(request.requests)[:256])).answers) == 256
    with pytest.raises(grpc.RpcError) as caught:
        asked.gateway.channel.unary_unary("/kv_indexer.v1.Scorer/ScoreBatch")(
            b"\x0a\x7f", timeout=TIMEOUT_S, metadata=(("authorization", f"Bearer {TOKEN}"),)
        )
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_bodies_over_http_and_messages_share_one_room() -> None:
    """What arrives over HTTP leaves no room for a message, until it is gone."""
    port, tokens = free_port(), list(range(5_000))
    with (
        Engine() as engine,
        Running(engine.spec("first"), gateway_listen=f"127.0.0.1:{port}", bodies_bytes_max="50000") as service,
        Gateway(port) as gateway,
    ):
        service.wait_for(pod="first", sequence=engine.publish(stored([1], [1, 2, 3, 4])))
        stub, request = stub_of(gateway.channel), messages.ScoreRequest(model="m", token_ids=tokens)
        assert stub.Score(request, timeout=TIMEOUT_S, wait_for_ready=True).pods[0].pod == "first"
        host, http_port = service.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(http_port)), timeout=TIMEOUT_S) as half:
            head = b"POST /v1/score HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 45000\r\n\r\n"
            half.sendall(head + b" " * 44_000)

            def is_refused() -> bool:
                try:
                    stub.Score(request, timeout=TIMEOUT_S)
                except grpc.RpcError as error:
                    return bool(error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED)
                return False

            wait_until(is_refused)
        wait_until(lambda: not is_refused())


def test_so_does_an_explanation(asked: Scorer) -> None:
    answer = asked.ask("Explain", messages.ScoreRequest(model="m", token_ids=[*TOKENS[:8], *range(50, 60)]))
    assert [run.blocks for run in answer.pods[0].ranks[0].runs] == [2]
    expected = over_http(asked, "/v1/explain", model="m", token_ids=[*TOKENS[:8], *range(50, 60)])
    found = plain(answer)
    assert found.pop("unknown_pods") == []
    assert alike(found, expected)


def test_a_pick_counts_until_it_is_done(asked: Scorer) -> None:
    before = asked.service.metric("kv_indexer_route_open")
    pick = asked.ask("Route", messages.RouteRequest(model="m", token_ids=TOKENS, policy="prefix"))
    assert (pick.pod, list(pick.fallbacks), pick.picked_for, pick.reason["first"].matched_tokens) == ("first", ["second"], "longest_match", 16)
    assert asked.service.metric("kv_indexer_route_open") == before + 1
    assert asked.ask("Done", messages.DoneRequest(id=pick.id)).known
    assert asked.service.metric("kv_indexer_route_open") == before
    assert not asked.ask("Done", messages.DoneRequest(id=pick.id)).known
    # Both ends are those of one router.
    pick = asked.ask("Route", messages.RouteRequest(model="m", token_ids=TOKENS))
    assert over_http(asked, "/v1/route/done", id=pick.id)["known"]


@pytest.mark.parametrize(
    ("method", "fields", "code", "path"),
    [
        ("Score", {"model": "ghost", "token_ids": [1]}, grpc.StatusCode.NOT_FOUND, "/v1/score"),
        ("Score", {"model": "m"}, grpc.StatusCode.INVALID_ARGUMENT, "/v1/score"),
        ("Explain", {"model": "m", "prompt": "a", "limit": 0}, grpc.StatusCode.INVALID_ARGUMENT, "/v1/explain"),
        ("Route", {"model": "m", "token_ids": TOKENS, "policy": "best"}, grpc.StatusCode.INVALID_ARGUMENT, "/v1/route"),
        ("Route", {"model": "m", "token_ids": TOKENS, "exclude": ["first", "second"]}, grpc.StatusCode.UNAVAILABLE, "/v1/route"),
    ],
)
def test_refusals_are_those_of_http(asked: Scorer, method: str, fields: dict[str, Any], code: grpc.StatusCode, path: str) -> None:
    before = asked.calls(method, code.name)
    kind = messages.RouteRequest if method == "Route" else messages.ScoreRequest
    found, problem, retry = asked.refused(method, kind(**fields))
    answer = asked.service.http.post(f"{asked.service.url}{path}", json=fields)
    assert found == code
    assert plain(problem) == answer.json()
    assert (None if retry is None else str(retry.retry_delay.seconds)) == answer.headers.get("retry-after")
    assert asked.calls(method, code.name) == before + 1


@pytest.mark.rule("G1")
def test_what_is_no_message_and_what_is_too_large_end_their_own_call(asked: Scorer) -> None:
    ask = asked.gateway.channel.unary_unary("/kv_indexer.v1.Scorer/Score")
    for content, code in ((b"\xff", "INVALID_ARGUMENT"), (b"\x0a\x7f", "INVALID_ARGUMENT"), (bytes(BODY_BYTES_MAX + 1), "RESOURCE_EXHAUSTED")):
        with pytest.raises(grpc.RpcError) as caught:
            ask(content, timeout=TIMEOUT_S, metadata=(("authorization", f"Bearer {TOKEN}"),))
        assert caught.value.code().name == code
    assert asked.service.metric("kv_indexer_score_requests_total", outcome="too_large") == 1
    assert asked.ask("Score", messages.ScoreRequest(model="m", token_ids=TOKENS)).best == "first"


@pytest.mark.rule("G4")
@pytest.mark.parametrize("method", ["Score", "Route", "Done", "Explain"])
def test_a_token_is_asked_for_where_http_asks_for_one(asked: Scorer, method: str) -> None:
    request = {"Route": messages.RouteRequest, "Done": messages.DoneRequest}.get(method, messages.ScoreRequest)()
    for metadata in ((("a", "b"),), (("authorization", "Bearer wrong"),), (("authorization", TOKEN),), (("x-kv-indexer-token", "wrong"),)):
        code, problem, _ = asked.refused(method, request, *metadata)
        assert (code, problem.status) == (WITHOUT_TOKEN, 401)


@pytest.mark.rule("G4")
def test_so_it_is_of_who_watches(asked: Scorer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(asked.ask("Watch", messages.WatchRequest(), ("a", "b")))
    assert refusal(caught.value)[0] == WITHOUT_TOKEN


@pytest.mark.rule("G4")
def test_a_watch_ends_once_its_token_is_withdrawn(tmp_path: Path) -> None:
    port, tokens = free_port(), tmp_path / "api"
    tokens.write_text(f"{TOKEN}\nanother-token-of-clients")
    with Gateway(port) as gateway, Running(gateway_listen=f"127.0.0.1:{port}", api_token_file=str(tokens), **FLAGS) as service:
        service.http.headers["authorization"] = "Bearer another-token-of-clients"
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        stream = stub_of(gateway.channel).Watch(messages.WatchRequest(), timeout=TIMEOUT_S, wait_for_ready=True, metadata=metadata)
        assert next(stream).changes[0].WhichOneof("change") == "up_to_date"
        tokens.write_text("another-token-of-clients")
        wait_until(lambda: service.http.get(f"{service.url}/v1/pods", headers=dict(metadata)).status_code == 401)
        service.http.put(f"{service.url}/v1/pods/third", json={"model": "m", "events": "tcp://127.0.0.1:9"}).raise_for_status()
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert refusal(caught.value)[0] == WITHOUT_TOKEN
        wait_until(lambda: service.metric("kv_indexer_rpc_watches") == 0)


def test_a_large_request_to_watch_is_refused(asked: Scorer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(asked.ask("Watch", messages.WatchRequest(model="m" * 70_000)))
    assert refusal(caught.value)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_our_own_header_does(asked: Scorer) -> None:
    request = messages.ScoreRequest(model="m", token_ids=TOKENS)
    assert asked.ask("Score", request, ("authorization", "Bearer of-a-client"), ("x-kv-indexer-token", TOKEN)).best == "first"


def test_its_health_is_told_without_a_token(asked: Scorer) -> None:
    assert asked.gateway.health("kv_indexer.v1.Scorer") == 1


def test_changes_are_told_as_they_happen(asked: Scorer) -> None:
    stream = asked.ask("Watch", messages.WatchRequest(model="m"))
    changes = (change for message in stream for change in message.changes)
    begun = list(itertools.takewhile(lambda change: change.WhichOneof("change") != "up_to_date", changes))
    assert sorted(change.pod_appeared.pod for change in begun if change.WhichOneof("change") == "pod_appeared") == ["first", "second"]
    asked.service.http.put(f"{asked.service.url}/v1/pods/third", json={"model": "m", "events": "tcp://127.0.0.1:9"}).raise_for_status()
    assert next(changes).pod_appeared.pod == "third"
    assert next(changes).stream_appeared.pod == "third"
    asked.service.http.delete(f"{asked.service.url}/v1/pods/third").raise_for_status()
    while (change := next(changes)).WhichOneof("change") != "pod_gone":
        assert change.WhichOneof("change") in ("trust_changed", "connected", "disconnected")
    assert change.pod_gone.pod == "third"
    stream.cancel()
    wait_until(lambda: asked.service.metric("kv_indexer_rpc_watches") == 0)


def test_a_watch_does_not_keep_the_service_from_ending() -> None:
    port = free_port()
    with Gateway(port) as gateway:
        with Running(gateway_listen=f"127.0.0.1:{port}", **FLAGS):
            stream = stub_of(gateway.channel).Watch(messages.WatchRequest(), timeout=TIMEOUT_S, wait_for_ready=True)
            assert next(stream).changes[0].WhichOneof("change") == "up_to_date"
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
    code, problem, retry = refusal(caught.value)
    assert (code, problem.detail, retry.retry_delay.seconds) == (grpc.StatusCode.UNAVAILABLE, "the service ends", 1)
