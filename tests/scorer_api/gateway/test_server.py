"""The endpoint picker as gateways see it, over real gRPC."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import pytest

from tests import ext_proc
from tests.engine import Engine, stored
from tests.engine_server import EngineServer, tokenize_bytes
from tests.ext_proc import DESTINATION, FULL_DUPLEX, NONE, REQUEST_BODY, REQUEST_HEADERS, RESPONSE_BODY, RESPONSE_HEADERS
from tests.gateway import CHECK, Gateway
from tests.ports import free_port
from tests.running import Client, Running
from tests.waiting import wait_until

TEXTS = {"first": "once upon a time there was a prompt", "second": "of arms and the man I sing, who first "}
PATIENT = {"route_seed": "1", "route_speculative_s": "0", "route_forget_s": "600", "load_interval_s": "0", "gateway_notice_s": "0.001"}


class Picker:
    """A service with two pods, each with the text of its name in its cache."""

    def __init__(self, service: Client, gateway: Gateway, port: int, at: dict[str, str]) -> None:
        self.service = service
        self.gateway = gateway
        self.port = port
        self.at = at

    def open(self) -> float:
        return self.service.metric("kv_indexer_route_open")


@pytest.fixture(scope="module")
def picker() -> Iterator[Picker]:
    port = free_port()
    with ExitStack() as stack:
        engines = {pod: stack.enter_context(Engine()) for pod in TEXTS}
        servers = {pod: stack.enter_context(EngineServer(routes={"/tokenize": tokenize_bytes})) for pod in engines}
        specs = [engine.spec(pod, http=servers[pod].url) for pod, engine in engines.items()]
        service = stack.enter_context(Running(*specs, gateway_listen=f"127.0.0.1:{port}", **PATIENT))
        for number, (pod, engine) in enumerate(engines.items(), 1):
            tokens = list(TEXTS[pod].encode())[: len(TEXTS[pod]) // 4 * 4]
            sequence = engine.publish(stored(list(range(100 * number, 100 * number + len(tokens) // 4)), tokens))
            service.wait_for(pod=pod, sequence=sequence, trust="live")
        gateway = stack.enter_context(Gateway(port))
        yield Picker(service, gateway, port, {pod: server.netloc for pod, server in servers.items()})


def completion(pod: str, **more: object) -> bytes:
    return json.dumps({"model": "m", "prompt": TEXTS[pod], "temperature": 0, **more}).encode()


def test_a_request_goes_to_the_pod_that_holds_its_prefix(picker: Picker) -> None:
    for pod in ("first", "second", "first"):
        reply = picker.gateway.pick(completion(pod))
        assert reply.set[DESTINATION] == picker.at[pod]
        assert reply.told == {"envoy.lb": {DESTINATION: picker.at[pod]}}


@pytest.mark.parametrize(("response", "is_open_after_headers"), [(NONE, False), (FULL_DUPLEX, True)])
def test_the_router_learns_when_the_response_ends(picker: Picker, response: int, is_open_after_headers: bool) -> None:
    before = picker.open()
    with picker.gateway.call() as call:
        call.ask(completion("first"), response=response)
        call.reply()  # the body
        assert picker.open() == before + 1
        call.send(ext_proc.headers(RESPONSE_HEADERS, {":status": "200"}))
        assert call.reply().kind == 2
        wait_until(lambda: picker.open() == before + is_open_after_headers)
        if response == FULL_DUPLEX:
            call.send(ext_proc.body(RESPONSE_BODY, b"data: 1\n\n"))
            assert call.reply().body == b"data: 1\n\n"
            assert picker.open() == before + 1
            call.send(ext_proc.body(RESPONSE_BODY, b"", is_end=True))
            assert call.reply().is_end
            wait_until(lambda: picker.open() == before)
    assert picker.open() == before


def test_so_it_does_of_a_client_that_hangs_up_and_of_a_call_that_is_reset(picker: Picker) -> None:
    before = picker.open()
    with picker.gateway.call() as call:
        call.ask(completion("first"))
        call.end()
        wait_until(lambda: picker.open() == before)

    def without_answer() -> float:
        """Which of the two a reset is depends on what gRPC hears of first."""
        return sum(picker.service.metric("kv_indexer_gateway_calls_total", outcome=outcome) for outcome in ("aborted", "unanswered"))

    ended = without_answer()
    call = picker.gateway.call()
    call.ask(completion("first"))
    call.cancel()
    wait_until(lambda: picker.open() == before)
    wait_until(lambda: without_answer() == ended + 1)


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "invalid_request_error"),
        (b'{"model": "ghost", "prompt": "hi"}', 404, "not_found_error"),
    ],
)
def test_little_is_refused_and_in_the_words_of_openai(picker: Picker, body: bytes, status: int, kind: str) -> None:
    before = picker.service.metric("kv_indexer_gateway_refusals_total", status=str(status))
    reply = picker.gateway.pick(body)
    error = json.loads(reply.body)["error"]
    assert (reply.kind, reply.status, error["type"], error["code"]) == (7, status, kind, status)
    assert reply.set["content-type"] == "application/json"
    assert picker.service.metric("kv_indexer_gateway_refusals_total", status=str(status)) == before + 1


@pytest.mark.parametrize(
    ("path", "headers", "why"),
    [
        ("/v1/rerank?top=1", {}, "other_api"),
        ("/v1/audio/transcriptions", {"content_type": "multipart/form-data"}, "other_type"),
        ("/v1/completions", {"content_encoding": "gzip"}, "other_type"),
    ],
)
def test_what_cannot_be_looked_up_gets_a_pod_by_load(picker: Picker, path: str, headers: dict[str, str], why: str) -> None:
    before = picker.service.metric("kv_indexer_pick_by_load_total", why=why)
    assert picker.gateway.pick(b'{"model": "m"}', path, **headers).set[DESTINATION] in picker.at.values()
    assert picker.service.metric("kv_indexer_pick_by_load_total", why=why) == before + 1


@pytest.mark.rule("G1")
def test_a_body_over_the_limit_gets_a_pod_and_passes_through(picker: Picker) -> None:
    piece, pieces = b"x" * 2**20, 20
    with picker.gateway.call() as call:
        call.send(ext_proc.headers(REQUEST_HEADERS, {":path": "/v1/completions"}, more=ext_proc.modes(FULL_DUPLEX)))
        call.send(*[ext_proc.body(REQUEST_BODY, piece)] * pieces, ext_proc.body(REQUEST_BODY, b"", is_end=True))
        assert call.reply().set[DESTINATION] in picker.at.values()
        size = 0
        while not (reply := call.reply()).is_end:
            size += len(reply.body)
        assert size == len(piece) * pieces


@pytest.mark.parametrize("write", [ext_proc.text_value, lambda at: ext_proc.list_value([at, "10.9.9.9:1"])])
def test_only_the_endpoints_that_the_gateway_allows_are_picked(picker: Picker, write: Callable[[str], bytes]) -> None:
    for pod in TEXTS:
        assert picker.gateway.pick(completion("first"), more=ext_proc.subset(write(picker.at[pod]))).set[DESTINATION] == picker.at[pod]
    # An address by itself is all of its ports.
    assert picker.gateway.pick(completion("second"), more=ext_proc.subset(ext_proc.text_value("127.0.0.1"))).set[DESTINATION] == picker.at["second"]


@pytest.mark.parametrize("allowed", [[], ["10.9.9.9:80"]])
def test_where_it_allows_none_of_the_pods_there_is_no_pick(picker: Picker, allowed: list[str]) -> None:
    reply = picker.gateway.pick(completion("first"), more=ext_proc.subset(ext_proc.list_value(allowed)))
    assert (reply.status, reply.set["retry-after"]) == (503, "1")
    assert b"endpoints to choose from" in reply.body


@pytest.mark.rule("G2")
def test_headers_that_send_a_pod_elsewhere_are_the_picker_s_own(picker: Picker) -> None:
    forged = {"x_prefiller_host_port": "169.254.169.254:80", "x_data_parallel_host_port": "10.0.0.1:1"}
    assert sorted(picker.gateway.pick(completion("first"), **forged).removed) == ["x-data-parallel-host-port", "x-prefiller-host-port"]
    assert picker.gateway.pick(completion("first")).removed == []


@pytest.mark.parametrize("header", ["x_llm_d_model_name_rewrite", "x_gateway_model_name_rewrite"])
def test_a_request_may_be_for_another_model_than_its_body_says(picker: Picker, header: str) -> None:
    with picker.gateway.call() as call:
        reply = call.ask(completion("second", model="public-name"), **{header: "m"})
        assert reply.set[DESTINATION] == picker.at["second"]
        body = call.reply().body
        assert reply.set["content-length"] == str(len(body))
        assert json.loads(body) == json.loads(completion("second"))


def test_a_session_keeps_its_pod_where_that_is_the_policy(picker: Picker) -> None:
    port = free_port()
    specs = [f"pod={at},model=m,events=tcp://127.0.0.1:1" for at in ("127.0.0.1:8001", "127.0.0.1:8002")]
    with Running(*specs, gateway_listen=f"127.0.0.1:{port}", route_policy="session", **PATIENT), Gateway(port) as gateway:
        body = b'{"model": "m"}'
        picks = {name: {gateway.pick(body, x_session_id=name).set[DESTINATION] for _ in range(4)} for name in "abcdefgh"}
        assert all(len(found) == 1 for found in picks.values())
        assert set.union(*picks.values()) == {"127.0.0.1:8001", "127.0.0.1:8002"}


def test_who_served_is_counted_and_what_the_engine_found_in_its_cache(picker: Picker) -> None:
    metric = picker.service.metric
    served = {by: metric("kv_indexer_gateway_served_total", by=by) for by in ("picked", "other", "unknown")}
    cached = {source: metric("kv_indexer_gateway_cached_tokens_total", source=source) for source in ("predicted", "reported")}
    fewer = metric("kv_indexer_gateway_predictions_total", cached="fewer")
    matched = len(TEXTS["first"]) // 4 * 4
    for by, endpoint in (("picked", picker.at["first"]), ("other", picker.at["second"]), ("unknown", None)):
        with picker.gateway.call() as call:
            call.ask(completion("first"), response=FULL_DUPLEX)
            call.reply()
            more = b"" if endpoint is None else ext_proc.served(endpoint)
            call.send(ext_proc.headers(RESPONSE_HEADERS, {":status": "200"}, more=more))
            call.reply()
            tokens = 0 if by == "unknown" else matched
            usage = {"usage": {"prompt_tokens_details": {"cached_tokens": tokens}}}
            call.send(ext_proc.body(RESPONSE_BODY, json.dumps(usage).encode(), is_end=True))
            call.reply()
        wait_until(lambda by=by: metric("kv_indexer_gateway_served_total", by=by) == served[by] + 1)
    # What another pod than the picked one found says nothing about the pick.
    assert metric("kv_indexer_gateway_cached_tokens_total", source="predicted") == cached["predicted"] + 2 * matched
    assert metric("kv_indexer_gateway_cached_tokens_total", source="reported") == cached["reported"] + matched
    assert metric("kv_indexer_gateway_predictions_total", cached="fewer") == fewer + 1


@pytest.mark.rule("G1")
def test_hostile_messages_end_their_own_call_only(picker: Picker) -> None:
    malformed = picker.service.metric("kv_indexer_gateway_calls_total", outcome="malformed")
    for message in (b"\xff", b"\x12\x05abc", ext_proc.headers(2, {"cookie": "x" * 2**20})):
        call = picker.gateway.call()
        call.send(message)
        with pytest.raises(grpc.RpcError) as error:
            call.reply()
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        call.cancel()
    assert picker.service.metric("kv_indexer_gateway_calls_total", outcome="malformed") == malformed + 3
    with pytest.raises(grpc.RpcError) as error:
        picker.gateway.channel.unary_unary(CHECK)(b"\x0a\x7f", timeout=10)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as error:
        picker.gateway.channel.unary_unary("/grpc.health.v1.Health/Other")(b"", timeout=10)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert picker.gateway.pick(completion("first")).set[DESTINATION] == picker.at["first"]


def test_four_hundred_calls_at_once_over_one_connection(picker: Picker) -> None:
    calls = [picker.gateway.call() for _ in range(400)]
    for call in calls:
        call.send(ext_proc.headers(REQUEST_HEADERS, {":path": "/v1/completions"}, more=ext_proc.modes(FULL_DUPLEX)))
    wait_until(lambda: picker.service.metric("kv_indexer_gateway_open") == 400)
    for call in calls:
        call.send(ext_proc.body(REQUEST_BODY, completion("first"), is_end=True))
    assert {call.reply().set[DESTINATION] for call in calls} <= set(picker.at.values())
    for call in calls:
        call.end()
    wait_until(lambda: picker.service.metric("kv_indexer_gateway_open") == 0)


def test_the_health_service_knows_all_names_in_use(picker: Picker) -> None:
    for name in ("", "liveness", "readiness", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor"):
        assert picker.gateway.health(name) == 1
    assert picker.gateway.health("something else") == 3
