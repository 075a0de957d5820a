"""The doctor and engines: each misconfigured in one way, with real sockets behind."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
import zmq

from tests.engine import Engine, batch, stored
from tests.engine_server import EngineServer, json_reply
from tests.ports import free_port
from tests.running import Running
from tests.scorer_api.doctor.examined import Examined
from tests.waiting import wait_until


@contextmanager
def publishing(engine: Engine, *, every: int = 1, **fields: Any) -> Iterator[None]:
    """A batch every few milliseconds, meanwhile. `fields`: of every so many-th batch's event; `at_s` and `rank` of the batch."""
    stopping = threading.Event()
    at_s, rank = fields.pop("at_s", 0.0), fields.pop("rank", 0)

    def publish() -> None:
        number = 1000
        while not stopping.wait(0.02) and number < 3000:
            number += 1
            event = stored([number], range(4 * number, 4 * number + 4), **({} if number % every else fields))
            engine.publish_payload(msgspec.msgpack.encode([time.time() + at_s, [event], rank]))

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(10)


@contextmanager
def followed(engine: Engine, api: EngineServer, spec: str | None = None, **flags: str) -> Iterator[Running]:
    """A service that follows this engine, which has announced a block."""
    with Running(spec or engine.spec(http=api.url), **flags) as service:
        engine.publish(stored([1], range(1, 5)))
        if spec is None:
            service.wait_for(sequence=0, trust="live")
        yield service


# What it is set up with


def test_prefix_caching_off() -> None:
    with Engine() as engine, EngineServer(prefix_caching=False) as api, Running(engine.spec(http=api.url)) as service:
        service.wait_for(connected=True)
        found = Examined(service.url)
    assert found.bad() == {"prefix_caching_off", "never_announced"}
    assert "--enable-prefix-caching" in found.the("prefix_caching_off").mend
    assert found.exit_code == 3


def test_sglang_says_in_its_own_way_that_it_caches_nothing() -> None:
    info = {"disable_radix_cache": True, "page_size": 4, "version": "0.5.9", "kv_events_config": None}
    with (
        Engine() as engine,
        EngineServer(metrics="", routes={"/get_server_info": lambda _: json_reply(info)}) as api,
        followed(engine, api) as service,
    ):
        found = Examined(service.url)
    assert found.bad() == {"prefix_caching_off", "events_disabled"}
    assert found.exit_code == 3


def test_another_model_name() -> None:
    with Engine() as engine, EngineServer(engine, model="served/name") as api, followed(engine, api) as service:
        found = Examined(service.url)
    assert "'served/name', and not 'm'" in found.the("model_not_served").detail
    assert (found.bad(), found.exit_code) == ({"model_not_served"}, 3)


def test_a_pod_that_is_registered_with_the_name_of_an_adapter() -> None:
    with Engine() as engine, EngineServer(engine, models={"base": None, "m": "base"}) as api, followed(engine, api) as service:
        found = Examined(service.url)
    assert "LoRA adapter of 'base'" in found.the("model_not_served").detail
    assert (found.bad(), found.exit_code) == ({"model_not_served"}, 3)


def test_adapters_are_named() -> None:
    with Engine() as engine, EngineServer(engine, models={"m": None, "lora": "m"}) as api, followed(engine, api) as service:
        found = Examined(service.url)
    assert "with adapters 'lora'" in found.the("engine_well").detail
    assert (found.bad(), found.exit_code) == (set(), 0)


def test_another_block_size() -> None:
    with Engine() as engine, EngineServer(engine, block_size=16) as api, followed(engine, api) as service:
        found = Examined(service.url)
    assert "blocks of 16 tokens; its events have blocks of 4" in found.the("block_size_differs").detail
    assert (found.bad(), found.exit_code) == ({"block_size_differs"}, 1)


def test_an_engine_that_is_not_well() -> None:
    with Engine() as engine, EngineServer(engine, health=503) as api, followed(engine, api) as service:
        found = Examined(service.url)
    assert (found.bad(), found.exit_code) == ({"engine_unhealthy"}, 3)


def test_an_api_that_is_not_where_the_spec_says() -> None:
    with Engine() as engine, Running(engine.spec(http=f"http://127.0.0.1:{free_port()}")) as service:
        engine.publish(stored([1], range(1, 5)))
        service.wait_for(sequence=0, trust="live")
        found = Examined(service.url)
    assert found.the("unreachable_from_here").severity == "note"
    assert (found.bad(), found.exit_code) == (set(), 0)


def test_an_engine_without_tokenize_and_metrics() -> None:
    with Engine() as engine, EngineServer(engine, routes={"/tokenize": lambda _: (404, b"")}, metrics="") as api, followed(engine, api) as service:
        found = Examined(service.url, model="m", prompt="one two")
    assert {"tokenize_missing", "engine_metrics_missing"} <= set(found.codes)
    assert (found.bad(), found.exit_code) == ({"tokenize_missing"}, 1)


def test_engines_whose_tokenizers_differ() -> None:
    with (
        Engine() as a,
        Engine() as b,
        EngineServer(a) as api_a,
        EngineServer(b, vocabulary="w") as api_b,
        Running(a.spec("a", http=api_a.url), b.spec("b", http=api_b.url)) as service,
    ):
        for engine, pod in ((a, "a"), (b, "b")):
            engine.publish(stored([1], range(1, 5)))
            service.wait_for(pod=pod, sequence=0, trust="live")
        found = Examined(service.url, model="m", prompt="one two three four five")
    assert found.bad() == {"tokenizers_differ", "prompt_unmatched", "hint"}
    assert found.exit_code == 1


# Its sockets


def test_events_disabled_where_the_engine_cannot_say_so() -> None:
    port = free_port()
    with EngineServer() as api, Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{port},http={api.url}", ready_after_s="0.001") as service:
        wait_until(lambda: service.http.get(f"{service.url}/readyz").status_code == 200)
        found = Examined(service.url)
    assert "enable_kv_cache_events" in found.the("events_disabled").mend
    assert "though the engine's API at" in found.the("events_disabled").detail
    assert found.bad() - {"service_degraded"} == {"events_disabled"}
    assert found.exit_code == 3


def test_events_disabled_by_the_engine_s_own_word() -> None:
    with (
        EngineServer(routes={"/kv_event_sources": lambda _: json_reply([])}) as api,
        Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{free_port()},http={api.url}") as service,
    ):
        found = Examined(service.url)
    assert "events_disabled" in found.bad()
    assert found.exit_code == 3


def test_a_wrong_port_and_the_engine_says_the_right_one() -> None:
    with Engine() as engine:
        sources = [{"data_parallel_rank": 0, "endpoint": f"tcp://*:{engine.events_port}", "replay_endpoint": None, "topic": ""}]
        with (
            EngineServer(routes={"/kv_event_sources": lambda _: json_reply(sources)}) as api,
            Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{free_port()},http={api.url}") as service,
        ):
            found = Examined(service.url)
    assert f"at port {engine.events_port}" in found.the("events_port_differs").detail
    assert {"events_disabled", "events_port_differs"} <= found.bad()
    assert found.exit_code == 3


def test_the_api_s_port_for_the_events() -> None:
    with EngineServer() as api, Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{api.port},http={api.url}") as service:
        wait_until(lambda: service.stream()["last_error"] is not None)
        found = Examined(service.url)
    assert "does not say what a ZMQ socket says" in found.the("events_port_differs").detail
    assert found.exit_code == 3


def test_replay_and_events_exchanged() -> None:
    with Engine() as engine, EngineServer(engine) as api:
        spec = f"pod=pod,model=m,events=tcp://127.0.0.1:{engine.replay_port},replay=tcp://127.0.0.1:{engine.events_port},http={api.url}"
        with Running(spec) as service:
            found = Examined(service.url)
    assert found.the("events_port_differs").subject == "pod pod"
    assert found.the("events_port_differs").mend == "swap the ports of events=… and replay=…"
    assert found.exit_code == 3


def test_another_pod_s_replay_port_for_the_events() -> None:
    with (
        Engine() as engine,
        EngineServer(engine) as api,
        Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{engine.replay_port},http={api.url}") as service,
    ):
        found = Examined(service.url)
    assert "is a replay socket (ROUTER), no PUB" in found.the("events_port_differs").detail
    assert found.exit_code == 3


def test_another_pod_s_events_port_for_the_replays() -> None:
    with Engine() as engine, Engine() as other, EngineServer(engine) as api:
        spec = f"pod=pod,model=m,events=tcp://127.0.0.1:{engine.events_port},replay=tcp://127.0.0.1:{other.events_port},http={api.url}"
        with Running(spec) as service:
            found = Examined(service.url)
    assert "is a socket of events (XPUB), no ROUTER" in found.the("replay_port_differs").detail


@pytest.mark.parametrize("kind", [zmq.PUSH, zmq.REP])
def test_zmq_sockets_of_other_kinds(kind: int) -> None:
    with zmq.Context() as context, context.socket(kind) as events, context.socket(kind) as replay, EngineServer() as api:
        ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (events, replay)]
        with Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{ports[0]},replay=tcp://127.0.0.1:{ports[1]},http={api.url}") as service:
            found = Examined(service.url)
    assert ", no PUB" in found.the("events_port_differs").detail
    assert ", no ROUTER" in found.the("replay_port_differs").detail
    assert found.exit_code == 3


def test_a_socket_that_asks_for_a_password() -> None:
    with zmq.Context() as context, context.socket(zmq.PUB) as events, EngineServer() as api:
        events.plain_server = True
        port = events.bind_to_random_port("tcp://127.0.0.1")
        with Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{port},http={api.url}") as service:
            found = Examined(service.url)
    assert "asks for PLAIN" in found.the("zmq_secured").detail
    assert found.exit_code == 3


def test_an_engine_that_is_away_altogether_and_its_blocks_dropped() -> None:
    with Engine() as engine, Running(engine.spec(http=f"http://127.0.0.1:{free_port()}"), pod_expiry_s="0.2") as service:
        engine.publish(stored([1], range(1, 5)))
        service.wait_for(sequence=0, trust="live")
        engine.kill()
        service.wait_for(trust="expired")
        found = Examined(service.url)
    assert {"events_unreachable", "stream_expired"} <= found.bad()
    assert found.exit_code == 3


def test_a_replay_socket_that_does_not_answer() -> None:
    with Engine() as engine, EngineServer(engine) as api, followed(engine, api) as service:
        engine.mute = True
        found = Examined(service.url)
    assert "says nothing" in found.the("replay_unreachable").detail
    assert found.exit_code == 1


def test_a_replay_port_where_nobody_listens() -> None:
    with (
        Engine(with_replay=False) as engine,
        EngineServer(engine) as api,
        Running(engine.spec(http=api.url, replay=f"tcp://127.0.0.1:{free_port()}")) as service,
    ):
        service.wait_for(connected=True)
        found = Examined(service.url)
    assert "replay_unreachable" in found.bad()


def test_the_api_s_port_for_the_replays() -> None:
    with (
        Engine(with_replay=False) as engine,
        EngineServer(engine) as api,
        Running(engine.spec(http=api.url, replay=f"tcp://127.0.0.1:{api.port}")) as service,
    ):
        service.wait_for(connected=True)
        found = Examined(service.url)
    assert "does not say what a ZMQ socket says" in found.the("replay_port_differs").detail


def test_a_router_that_is_no_engine_s() -> None:
    with Engine(with_replay=False) as engine, EngineServer(engine) as api, zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        stopping = threading.Event()

        def answer() -> None:
            while not stopping.is_set():
                if router.poll(20):
                    router.send_multipart([router.recv_multipart()[0], b"hello"])

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with Running(engine.spec(http=api.url, replay=f"tcp://127.0.0.1:{port}")) as service:
            service.wait_for(connected=True)
            found = Examined(service.url)
        stopping.set()
        thread.join(10)
    assert "answers what no engine answers" in found.the("replay_unreachable").detail


def test_an_engine_without_replay_that_ran_before_the_service() -> None:
    with Engine(with_replay=False) as engine, EngineServer(engine) as api, Running(engine.spec(http=api.url)) as service:
        service.wait_for(connected=True)
        engine.next_number = 7
        engine.publish(stored([1], range(1, 5)))
        service.wait_for(sequence=7)
        found = Examined(service.url)
    assert {"no_replay", "stream_partial"} <= set(found.codes)
    assert (found.bad(), found.exit_code) == (set(), 0)


# What it publishes


def test_a_topic_that_matches_nothing() -> None:
    with Engine(topic=b"kv@pod@m") as engine, EngineServer(engine) as api, Running(engine.spec(http=api.url, topic="kv-events")) as service:
        service.wait_for(connected=True)
        with publishing(engine):
            found = Examined(service.url)
    assert "topic='kv-events' is no beginning of what is published: 'kv@pod@m'" in found.the("topic_matches_nothing").detail
    assert found.exit_code == 3


def test_a_topic_of_another_model() -> None:
    with Engine(topic=b"kv@pod@other/model") as engine, EngineServer(engine) as api, followed(engine, api) as service, publishing(engine):
        found = Examined(service.url)
    assert "the topic is 'kv@pod@other/model'" in found.the("events_port_differs").detail
    assert (found.bad(), found.exit_code) == ({"events_port_differs"}, 1)


def test_what_is_published_is_no_events() -> None:
    with Engine() as engine, EngineServer(engine) as api, followed(engine, api) as service:
        stopping = threading.Event()

        def shout() -> None:
            while not stopping.wait(0.02):
                engine.send([b"weather", b"sunny"])

        thread = threading.Thread(target=shout, daemon=True)
        thread.start()
        found = Examined(service.url)
        stopping.set()
        thread.join(10)
    assert any("frame_count" in each.detail for each in found.findings if each.code == "events_refused" and each.severity == "error")
    assert found.exit_code == 3


def test_batches_of_another_rank() -> None:
    with Engine() as engine, EngineServer(engine) as api, followed(engine, api, engine.spec(http=api.url, rank=0)) as service:
        service.wait_for(sequence=0, trust="live")
        with publishing(engine, rank=3):
            found = Examined(service.url)
    assert "say rank 3; the spec has rank 0" in found.the("rank_differs").detail
    assert found.exit_code == 1


def test_batches_of_ranks_that_share_a_port() -> None:
    with Engine() as engine, EngineServer(engine) as api, followed(engine, api) as service:
        engine.publish_payload(batch([stored([2], range(5, 9))], 1))
        wait_until(lambda: len(service.http.get(f"{service.url}/v1/pods").json()["pods"][0]["streams"]) == 2)
        service.wait_for(rank=1, sequence=1, trust="live")
        # The pod is followed anew with two ranks: until it is connected again, this one is stale.
        service.wait_for(rank=0, trust="live")
        with publishing(engine, rank=1):
            found = Examined(service.url)
    assert (found.bad(), found.codes.count("stream_well")) == (set(), 2)


def test_events_that_cannot_be_used() -> None:
    with Engine() as engine, EngineServer(engine) as api, followed(engine, api) as service, publishing(engine, every=2, block_hashes="none"):
        found = Examined(service.url)
    assert "events_refused" in found.bad()
    assert "announcements_refused" not in found.codes
    assert found.exit_code == 1


def test_an_engine_of_whose_events_none_can_be_used() -> None:
    with Engine() as engine, EngineServer(engine) as api, followed(engine, api) as service, publishing(engine, block_hashes="none"):
        wait_until(lambda: sum(service.stream()["refused"].values()) > 20)
        found = Examined(service.url)
    assert "event_malformed" in found.the("announcements_refused").detail
    assert {"events_refused", "announcements_refused"} <= found.bad()
    assert found.exit_code == 3


def test_an_engine_that_publishes_well_while_the_doctor_listens() -> None:
    with Engine() as engine, EngineServer(engine) as api, followed(engine, api) as service, publishing(engine):
        found = Examined(service.url)
    assert "events_well" in found.codes
    assert (found.bad(), found.exit_code) == (set(), 0)


# Clocks


def test_an_engine_whose_batches_are_a_minute_ahead() -> None:
    with Engine() as engine, EngineServer(engine) as api, followed(engine, api) as service, publishing(engine, at_s=60):
        found = Examined(service.url)
    assert found.the("clock_off").detail == "its clock is 60 s ahead of ours"
    assert (found.bad(), found.exit_code) == ({"clock_off"}, 1)


def test_an_idle_engine_whose_api_is_a_minute_behind() -> None:
    with Engine() as engine, EngineServer(engine, date_offset_s=-60) as api, followed(engine, api) as service:
        found = Examined(service.url)
    assert "behind ours" in found.the("clock_off").detail
    assert (found.bad(), found.exit_code) == ({"clock_off"}, 1)


# Engines that dial the service


def test_an_engine_that_dials_the_service_and_one_that_stopped_to() -> None:
    port = free_port()
    with EngineServer() as api, Running(listen=f"tcp://127.0.0.1:{port}") as service:
        with Engine(topic=b"kv@pod@m", dials=port) as engine:

            def announced() -> bool:
                engine.publish(stored([engine.next_number], range(4)))
                return any(pod["pod"] == "pod" and pod["streams"] for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"])

            wait_until(announced)
            service.wait_for(connected=True)
            dialling = Examined(service.url)
        service.wait_for(connected=False)
        away = Examined(service.url)
    assert api.completions == 0
    assert any("it dials the service" in each.detail for each in dialling.findings if each.code == "unreachable_from_here")
    assert "not_connected" not in dialling.codes
    assert "it is not connected to --listen" in away.the("not_connected").detail
    assert away.exit_code == 3


# The probe


def test_the_probe_of_an_engine_whose_events_do_not_arrive() -> None:
    with Engine() as engine, EngineServer(engine, publishes=False) as api, followed(engine, api) as service:
        found = Examined(service.url, model="m", probes=True)
    assert (found.bad(), found.exit_code) == ({"probe_unseen"}, 3)
    assert api.completions == 2


def test_the_probe_of_an_engine_that_counts_otherwise() -> None:
    with Engine() as engine, EngineServer(engine, cached_tokens_error=-4) as api, followed(engine, api) as service:
        found = Examined(service.url, model="m", probes=True)
    assert (found.bad(), found.exit_code) == ({"probe_differs"}, 1)
    assert "one block less" in found.the("probe_differs").detail


def test_the_probe_of_an_engine_that_counts_two_blocks_less() -> None:
    with Engine() as engine, EngineServer(engine, cached_tokens_error=-8) as api, followed(engine, api) as service:
        found = Examined(service.url, model="m", probes=True)
    assert "drops_last_block" not in found.the("probe_differs").detail


def test_the_probe_of_an_engine_that_computes_its_last_matched_block_again() -> None:
    with Engine() as engine, EngineServer(engine, cached_tokens_error=-4) as api:
        engine.publish(stored([1], range(1, 5)))
        with followed(engine, api, engine.spec(http=api.url, drops_last_block=1)) as service:
            service.wait_for(sequence=1, trust="live")
            found = Examined(service.url, model="m", probes=True)
    assert found.the("probe_well").detail.startswith("3 of 3 blocks of a new prompt")


def test_the_probe_of_an_engine_that_does_not_count() -> None:
    with Engine() as engine, EngineServer(engine, reports_cached_tokens=False) as api, followed(engine, api) as service:
        found = Examined(service.url, model="m", probes=True)
    assert "probe_uncounted" in found.codes
    assert (found.bad(), found.exit_code) == (set(), 0)


def test_the_probe_of_an_engine_that_refuses() -> None:
    with Engine() as engine, EngineServer(engine, completion_error=401) as api, followed(engine, api) as service:
        found = Examined(service.url, model="m", probes=True)
    assert (found.bad(), found.exit_code) == ({"probe_refused"}, 1)


def test_nothing_is_sent_through_an_engine_unless_asked() -> None:
    with Engine() as engine, EngineServer(engine) as api, followed(engine, api) as service:
        Examined(service.url, model="m", prompt="one two three four five")
        assert api.completions == 0
        found = Examined(service.url, model="m", prompt="one two three four five", probes=True)
    assert found.the("probe_well").detail.startswith("4 of 4 blocks of a new prompt")
    assert api.completions == 2
