"""Traces of requests and batches, sent to a real receiver of OTLP by a real process, which is told by the standard variables alone."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.engine import Engine, stored
from tests.engine_server import EngineServer
from tests.gateway import Gateway
from tests.otlp_receiver import OtlpReceiver
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.running import Command
from tests.settings import QUICK, words_of
from tests.waiting import wait_until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
SERVER, CLIENT, CONSUMER = 2, 3, 5
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


class World(NamedTuple):
    service: Command
    receiver: OtlpReceiver
    engine: Engine
    http: EngineServer
    gateway_port: int


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Embedded; over HTTP."""
    with ExitStack() as stack:
        receiver, engine = stack.enter_context(OtlpReceiver()), stack.enter_context(Engine())
        http = stack.enter_context(EngineServer(model="m"))
        port = free_port()
        words = words_of({**QUICK, "port": "0", "gateway_listen": f"127.0.0.1:{port}"})
        command = Command("serve", *words, "--engine", engine.spec(http=http.url), env={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_url, **SOON})
        service = stack.enter_context(command)
        service.wait_url()
        wait_until(lambda: service.http.get(f"{service.url}/readyz").json()["status"] == "ready")
        engine.publish(stored([1, 2], range(1, 9)))
        service.wait_for(sequence=0)
        yield World(service, receiver, engine, http, port)


def test_a_request_is_part_of_its_caller_s_trace(world: World) -> None:
    service, receiver = world.service, world.receiver
    service.http.post(f"{service.url}/v1/score", json={"model": "m", "token_ids": [*range(1, 9), 9]}, headers=TRACEPARENT)
    span = next(span for span in receiver.wait_for("POST /v1/score") if span.trace == TRACE)
    assert (span.parent, span.kind, span.is_error, span.service) == (SPAN, SERVER, False, "kv-indexer")
    expected = {"http.request.method": "POST", "http.route": "/v1/score", "http.response.status_code": 200, "kv.model": "m", "kv.tokens": 9}
    assert span.attributes.items() >= (expected | {"kv.matched_tokens": 8, "kv.pod": "pod"}).items()
    assert 0 < span.end_ns - span.start_ns < 60 * 10**9
    assert abs(span.end_ns - time.time_ns()) < 60 * 10**9


def test_a_request_without_a_trace_begins_one(world: World) -> None:
    service, receiver = world.service, world.receiver
    service.http.post(f"{service.url}/v1/route", json={"model": "m", "token_ids": [1, 2, 3]})
    span = receiver.wait_for("POST /v1/route")[-1]
    assert span.parent == ""
    assert span.attributes["kv.pod"] == "pod"
    assert span.attributes["kv.picked_for"] == "only_one"


def test_a_pick_says_what_it_was_for(world: World) -> None:
    service, receiver = world.service, world.receiver
    answer = service.http.post(f"{service.url}/v1/pick/v1/completions", json={"model": "m", "prompt": [*range(1, 9), 9]}, headers=TRACEPARENT)
    assert answer.status_code in (200, 503)
    span = receiver.wait_for("POST /v1/pick")[-1]
    assert (span.trace, span.parent, span.attributes["http.route"]) == (TRACE, SPAN, "/v1/pick")
    assert span.is_error == (answer.status_code == 503)


def test_a_pick_for_a_gateway_is_part_of_its_client_s_trace(world: World) -> None:
    with Gateway(world.gateway_port) as gateway:
        gateway.pick(b'{"model": "m", "prompt": [1, 2]}', **TRACEPARENT)
    span = world.receiver.wait_for("pick")[-1]
    assert (span.trace, span.parent, span.attributes["rpc.method"]) == (TRACE, SPAN, "Process")


def test_what_the_engine_is_asked_is_part_of_the_trace_and_gets_it_passed_on(world: World) -> None:
    service, receiver, http = world.service, world.receiver, world.http
    service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": "1 2 3"}, headers=TRACEPARENT)
    call = receiver.wait_for("POST /tokenize")[-1]
    wait_until(lambda: call.parent in {span.span for span in receiver.named("POST /v1/score")}, what="the span that it is a part of")
    assert (call.trace, call.kind, call.attributes["kv.pod"]) == (TRACE, CLIENT, "pod")
    passed_on = [headers.get("traceparent") for headers in http.tokenize_headers]
    assert passed_on == [f"00-{TRACE}-{call.span}-01"]
    assert http.tokenize_headers[0]["tracestate"] == "vendor=1"


def test_failures_are_told(world: World) -> None:
    service, receiver = world.service, world.receiver
    assert service.http.post(f"{service.url}/v1/explain", json={"model": "nobody", "token_ids": [1]}).status_code == 404
    span = receiver.wait_for("POST /v1/explain")[-1]
    assert (span.is_error, span.attributes["http.response.status_code"]) == (False, 404)


def test_health_and_metrics_have_no_spans(world: World) -> None:
    world.service.http.get(f"{world.service.url}/healthz")
    world.service.http.get(f"{world.service.url}/v1/pods/a%2Fb")
    world.receiver.wait_for("GET /v1/pods")
    assert not [span for span in world.receiver.spans if "healthz" in span.name or "metrics" in span.name or "a/b" in span.name]


def test_a_batch_is_followed_from_its_engine_into_the_index(world: World) -> None:
    number = world.engine.publish(stored([3], range(9, 13), 2))
    whole = wait_until(lambda: next((span for span in world.receiver.named("kv_events.batch") if span.attributes["kv.sequence"] == number), None))
    assert whole.attributes == {"kv.model": "m", "kv.pod": "pod", "kv.rank": 0, "kv.sequence": number, "kv.events": 1}
    parts = [span for span in world.receiver.spans if span.trace == whole.trace and span != whole]
    assert {part.name for part in parts} == {"kv_events.transport", "kv_events.apply"}
    transport, applied = sorted(parts, key=lambda part: part.start_ns)
    assert transport.start_ns == whole.start_ns
    assert transport.end_ns == applied.start_ns
    assert applied.end_ns == whole.end_ns
    assert (whole.parent, whole.kind, transport.parent, applied.parent) == ("", CONSUMER, whole.span, whole.span)


def test_histograms_lead_to_traces(world: World) -> None:
    service = world.service
    service.http.post(f"{service.url}/v1/score", json={"model": "m", "token_ids": [1, 2, 3]}, headers=TRACEPARENT)
    text = service.http.get(f"{service.url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}).text
    found = re.findall(r'^kv_indexer_score_seconds_bucket\{.*phase="look_up".*\} \S+ # \{(.*?)\}', text, re.MULTILINE)
    assert any(f'trace_id="{TRACE}"' in labels for labels in found)
    batches = {span.trace for span in world.receiver.wait_for("kv_events.batch")}
    ages = re.findall(r'^kv_indexer_event_age_seconds_bucket\{.*\} \S+ # \{.*trace_id="(\w+)"', text, re.MULTILINE)
    assert ages
    assert set(ages) <= batches
    assert text.endswith("# EOF\n")
    assert "# {" not in service.http.get(f"{service.url}/metrics").text, "the older format has none"


def test_replicas_trace_the_way_through_redis_too_and_speak_grpc() -> None:
    with ExitStack() as stack:
        receiver, engine, redis = (stack.enter_context(each) for each in (OtlpReceiver(), Engine(), RedisServer()))
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_SERVICE_NAME": "mine", **SOON}
        words = ["--redis", redis.url, "--namespace", "kvi", "--port", "0"]
        indexer = stack.enter_context(Command("ingest", *words, "--engine", engine.spec(), env=env))
        scorer = stack.enter_context(Command("api", *words, env=env))
        indexer.wait_url(), scorer.wait_url()
        wait_until(lambda: all(client.http.get(f"{client.url}/readyz").json()["status"] == "ready" for client in (indexer, scorer)), 40)
        engine.publish(stored([1], range(1, 5)))
        batch = receiver.wait_for("kv_events.batch")[-1]
        # Entries without a batch, such as one that changes the trust, have traces of their own.
        wait_until(lambda: {"kv_events.log", "kv_events.follow"} <= {span.name for span in receiver.spans if span.trace == batch.trace}, 20)
        (log,) = (span for span in receiver.named("kv_events.log") if span.trace == batch.trace)
        assert (log.parent, batch.parent) == (batch.span, ""), "one trace from the engine to the scorer"
        assert (log.attributes["kv.pod"], log.service) == ("pod", "mine")
        (part,) = (span for span in receiver.named("kv_events.follow") if span.trace == batch.trace)
        assert (part.parent, part.start_ns, part.end_ns) == (log.span, log.start_ns, log.end_ns)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"}, "'carrier-pigeon' should be one of"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_what_cannot_be_sent_stops_nothing(env: dict[str, str], said: str | None) -> None:
    with Command("serve", "--port", "0", env=env) as service:
        assert service.wait_url().http.get(f"{service.url}/v1/models").status_code == 200
        lines = [line for line in service.lines if "traces are not sent" in line]
        assert [said in line for line in lines if said] == ([] if said is None else [True])
