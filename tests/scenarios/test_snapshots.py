"""Engines that say all that they hold now, over real sockets: who joins late, or lost history, knows all again."""

import pytest

from tests.engine import Engine, batch, cleared, removed, stored
from tests.processes import api, ingest
from tests.proxy import Proxy
from tests.redis_server import RedisServer
from tests.running import Running
from tests.scenarios.test_recovery import blocks_of, hashes, prompt
from tests.waiting import wait_until

mechanism = pytest.mark.mechanism


def snapshot_of(*events: object) -> list[bytes]:
    """As vLLM's proposal makes one: it begins with a clear, and each event is a part here."""
    return [batch([cleared()]), *(batch([event]) for event in events)]


def old_engine(engine: Engine) -> None:
    """It has published three prompts, and only the last batch can be replayed."""
    engine.history_max = 1
    for number in (1, 2, 3):
        engine.publish(blocks_of(number, 4))
    engine.snapshot = snapshot_of(*(blocks_of(number, 4) for number in (1, 2, 3)))


@mechanism("no_snapshots")
def test_who_joins_late_knows_all_at_once() -> None:
    with Engine() as engine:
        old_engine(engine)
        with Running(engine.spec(snapshot="replay")) as service:
            status = service.wait_for(sequence=2, trust="live")
            assert (status["gaps"], status["restarts"], status["last_error"]) == (0, 0, None)
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [16, 16, 16]
            assert engine.asked == [2], "the last batch in it, to know this process again"
            assert service.metric("kv_indexer_snapshots_total", outcome="loaded") == 1
            engine.publish(removed(hashes(1, 4, 2)))
            service.wait_for(sequence=3, trust="live")
            assert service.matched(prompt(1, 4)) == 8


def test_copies_of_a_cache_connector_that_wait_for_the_gpu_are_no_hole() -> None:
    with Engine() as engine:
        old_engine(engine)
        foreign = stored([7_001], prompt(9, 1)[:4], medium="CPU", extra_keys=None, group_idx=None)
        engine.snapshot = snapshot_of(blocks_of(1, 4), foreign)
        with Running(engine.spec(snapshot="replay")) as service:
            service.wait_for(sequence=2, trust="live")
            assert service.metric("kv_indexer_snapshots_total", outcome="loaded") == 1
            assert service.metric("kv_indexer_orphans_parked") == 1


def test_without_it_the_same_engine_is_partial() -> None:
    with Engine() as engine:
        old_engine(engine)
        with Running(engine.spec()) as service:
            service.wait_for(sequence=2, trust="partial")
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [0, 0, 16]
        assert engine.snapshots_asked == 0


@mechanism("no_replay_after_snapshots")
def test_what_came_after_it_is_replayed_and_nothing_twice() -> None:
    """Were the first batch applied twice, its blocks would have two copies, of which a removal takes one."""
    with Engine() as engine:
        engine.publish(blocks_of(1, 4))
        engine.snapshot, engine.snapshot_resume = snapshot_of(blocks_of(1, 4)), [1, 1]
        engine.publish(removed(hashes(1, 4, 2)))
        engine.publish(blocks_of(2, 4))
        with Running(engine.spec(snapshot="replay")) as service:
            status = service.wait_for(sequence=2, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [8, 16]
            assert status["replayed"] == 2


def test_live_batches_that_are_in_it_are_passed_over() -> None:
    """They wait in the inbox while it is read."""
    with Engine() as engine:
        engine.snapshot = snapshot_of()
        with Running(engine.spec(snapshot="replay"), snapshot_retry_s="0.01") as service:
            service.wait_for(trust="live")
            engine.history_max = 1
            engine.publish(blocks_of(1, 4), is_lost=True, is_forgotten=True)
            # The next batch shows the gap; the snapshot that is asked for then has it already.
            engine.snapshot = snapshot_of(blocks_of(1, 4), blocks_of(2, 4))
            engine.publish(blocks_of(2, 4))
            service.wait_for(sequence=1, trust="live")
            engine.publish(removed(hashes(2, 4)))
            service.wait_for(sequence=2, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [16, 0]


def test_lost_history_is_asked_for() -> None:
    with Engine() as engine:
        engine.snapshot = snapshot_of()
        with Running(engine.spec(snapshot="replay"), snapshot_retry_s="0.01") as service:
            service.wait_for(trust="live")
            engine.publish(blocks_of(1, 4))
            service.wait_for(sequence=0)
            engine.history_max = 1
            engine.publish(blocks_of(2, 4), is_lost=True, is_forgotten=True)
            engine.snapshot = snapshot_of(*(blocks_of(number, 4) for number in (1, 2, 3)))
            engine.publish(blocks_of(3, 4))
            service.wait_for(sequence=2, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [16, 16, 16]


def test_an_engine_that_knows_no_snapshots_is_asked_once_and_followed_as_ever() -> None:
    with Engine() as engine:
        old_engine(engine)
        engine.snapshot = None
        with Running(engine.spec(snapshot="replay"), snapshot_retry_s="0.01") as service:
            service.wait_for(sequence=2, trust="partial")
            engine.publish(blocks_of(4, 4))
            service.wait_for(sequence=3, trust="partial")
            assert [service.matched(prompt(number, 4)) for number in (1, 3, 4)] == [0, 16, 16]
            assert service.metric("kv_indexer_snapshots_total", outcome="none") == engine.snapshots_asked == 1


@mechanism("no_end_of_snapshots")
def test_one_that_breaks_off_counts_for_nothing_and_is_asked_for_again() -> None:
    with Engine() as engine:
        old_engine(engine)
        engine.with_snapshot_marker = False
        with Running(engine.spec(snapshot="replay"), snapshot_retry_s="0.01", snapshot_retry_max_s="0.01") as service:
            wait_until(lambda: service.metric("kv_indexer_snapshots_total", outcome="cut") >= 1)
            assert service.stream()["trust"] != "live"
            engine.with_snapshot_marker = True
            service.wait_for(sequence=2, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [16, 16, 16]


@pytest.mark.rule("E1")
@pytest.mark.parametrize(
    ("parts", "resumes", "limits", "reason"),
    [
        ([batch([blocks_of(1, 4)])] * 2, [3, 4], {}, "frame_sequence"),
        ([batch([blocks_of(1, 4)])] * 20, None, {"snapshot_bytes_max": "1000"}, "snapshot_size"),
    ],
)
def test_one_that_cannot_be_is_refused(parts: list[bytes], resumes: list[int] | None, limits: dict[str, str], reason: str) -> None:
    with Engine() as engine:
        old_engine(engine)
        engine.snapshot, engine.snapshot_resume = parts, resumes
        with Running(engine.spec(snapshot="replay"), **limits) as service:
            service.wait_for(sequence=2, trust="partial")
            assert [service.matched(prompt(number, 4)) for number in (1, 3)] == [0, 16]
            assert service.metric("kv_indexer_refused_total", reason=reason) == 1
            assert service.metric("kv_indexer_snapshots_total", outcome="refused") == 1


@pytest.mark.rule("E1")
def test_one_with_an_unreadable_part_leaves_the_stream_partial() -> None:
    with Engine() as engine:
        old_engine(engine)
        engine.snapshot = [*snapshot_of(blocks_of(1, 4)), b"\xc1", batch([blocks_of(2, 4)])]
        with Running(engine.spec(snapshot="replay")) as service:
            status = service.wait_for(sequence=2, trust="partial")
            assert status["refused"] == {"batch_malformed": 1}
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [16, 16, 0]


def test_one_that_lacks_a_part_is_not_believed() -> None:
    """An engine's socket drops what it has no room for, and says nothing."""
    with Engine() as engine:
        old_engine(engine)
        engine.snapshot = snapshot_of(blocks_of(1, 4, 2), blocks_of(2, 4))
        with Running(engine.spec(snapshot="replay")) as service:
            service.wait_for(sequence=2, trust="partial")
            assert service.metric("kv_indexer_snapshots_total", outcome="hole") == 1
            assert [service.matched(prompt(number, 4)) for number in (2, 3)] == [0, 16]


def test_another_process_of_the_engine_is_asked_anew() -> None:
    with Engine() as engine:
        old_engine(engine)
        with Running(engine.spec(snapshot="replay")) as service:
            service.wait_for(sequence=2, trust="live")
            engine.kill()
            engine.start()
            engine.history_max = 1
            for _ in range(5):
                engine.publish(blocks_of(4, 4))
            engine.snapshot = snapshot_of(blocks_of(4, 4))
            service.wait_for(sequence=4, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 4)] == [0, 16]


def test_the_same_process_is_known_after_a_lost_connection() -> None:
    with Engine() as engine, Proxy(engine.events_port) as proxy:
        old_engine(engine)
        spec = engine.spec(snapshot="replay").replace(f":{engine.events_port}", f":{proxy.port}", 1)
        with Running(spec) as service:
            service.wait_for(sequence=2, trust="live")
            proxy.cut()
            wait_until(lambda: engine.asked.count(2) == 2)
            status = service.wait_for(sequence=2, trust="live")
            assert (status["restarts"], engine.snapshots_asked) == (0, 1)


def test_an_engine_that_has_published_nothing_has_an_empty_one() -> None:
    with Engine() as engine:
        engine.snapshot = snapshot_of()
        with Running(engine.spec(snapshot="replay"), snapshot_retry_s="0.01") as service:
            service.wait_for(sequence=None, trust="live")
            # It is asked again after silences for batches, and for nothing else.
            wait_until(lambda: len(engine.asked) >= 3)
            assert engine.snapshots_asked == 1
            engine.publish(blocks_of(1, 4))
            service.wait_for(sequence=0, trust="live")
            assert service.matched(prompt(1, 4)) == 16


def test_through_redis_scorers_have_it_too() -> None:
    with Engine() as engine, RedisServer() as redis:
        old_engine(engine)
        with ingest(redis.url, engine.spec(snapshot="replay")), api(redis.url) as scorer:
            scorer.wait_url()
            wait_until(lambda: scorer.http.get(f"{scorer.url}/v1/pods").json()["pods"])
            scorer.wait_for(sequence=2, trust="live")
            wait_until(lambda: [scorer.matched(prompt(number, 4)) for number in (1, 2, 3)] == [16, 16, 16])


def test_a_large_one_keeps_nobody_waiting() -> None:
    """200,000 blocks, in events of 64."""
    parts = [batch([stored(range(start, start + 64), [1 + start + i // 4 for i in range(256)])]) for start in range(0, 200_000, 64)]
    with Engine() as engine:
        engine.publish(blocks_of(9, 1))
        engine.history_max = 1
        engine.publish(blocks_of(9, 1))
        engine.snapshot = parts
        with Running(engine.spec(snapshot="replay")) as service:
            service.wait_for(timeout_s=60, sequence=1, trust="live")
            assert service.stream()["blocks"]["gpu"] == 200_000
            service.assert_loop_in_time()


def with_own_port(pod_snapshot: list[bytes] | None) -> Engine:
    """An engine that is asked at an endpoint for snapshots alone, as vLLM's other proposal has it."""
    engine = Engine(with_snapshot_port=True)
    engine.whole_snapshot = pod_snapshot
    return engine


def spec_of(engine: Engine) -> str:
    return engine.spec(snapshot=f"tcp://{engine.host}:{engine.snapshot_port}")


def named(numbers: list[int], medium: str = "GPU") -> dict[str, object]:
    """A copy of each of these blocks, by hash alone."""
    return {"type": "BlockStored", "block_hashes": numbers, "parent_block_hash": None, "token_ids": [], "block_size": 0, "lora_id": None} | {
        "medium": medium,
        "lora_name": None,
        "extra_keys": None,
        "group_idx": 0,
    }


def test_at_an_endpoint_of_its_own_it_comes_in_one_message() -> None:
    """Prompt 1 is held twice on the gpu, prompt 2 on the cpu only, and of prompt 3 nothing any more."""
    on_cpu = {**blocks_of(2, 4), "medium": "CPU"}
    ones, twos, threes = (hashes(number, 4) for number in (1, 2, 3))
    parts = [
        [blocks_of(1, 4), on_cpu, blocks_of(3, 4)],
        [removed(threes), named(ones), named(ones)],
        [named(twos, "CPU"), removed(ones), removed(twos, medium="CPU")],
    ]
    with with_own_port([batch(events) for events in parts]) as engine:
        for number in (1, 2, 3):
            engine.publish(blocks_of(number, 4))
        engine.history_max = 1
        engine.publish()
        with Running(spec_of(engine)) as service:
            status = service.wait_for(sequence=3, trust="live")
            assert (status["gaps"], status["restarts"], status["last_error"], status["refused"]) == (0, 0, None, {})
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [16, 16, 0]
            assert service.metric("kv_indexer_snapshots_total", outcome="loaded") == 1
            engine.publish(removed(ones))
            service.wait_for(sequence=4)
            assert service.matched(prompt(1, 4)) == 16, "there were two copies"
            engine.publish(removed(ones), removed(twos, medium="CPU"))
            service.wait_for(sequence=5, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [0, 0]
            assert service.metric("kv_indexer_unknown_total", what="field") == 0


def test_an_engine_that_has_none_at_present_is_asked_again() -> None:
    with with_own_port(None) as engine:
        old_engine(engine)
        with Running(spec_of(engine), snapshot_retry_s="0.01", snapshot_retry_max_s="0.01") as service:
            service.wait_for(sequence=2)
            wait_until(lambda: service.metric("kv_indexer_snapshots_total", outcome="unavailable") >= 2)
            assert service.stream()["trust"] != "live"
            assert service.matched(prompt(3, 4)) == 16, "what could be replayed counts"
            engine.whole_snapshot = [batch([blocks_of(number, 4) for number in (1, 2, 3)])]
            service.wait_for(sequence=2, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [16, 16, 16]


def test_an_engine_that_does_not_answer_there_is_followed_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.streams.snapshots.ANSWER_S", 0.1)
    with with_own_port([batch([blocks_of(1, 4)])]) as engine:
        old_engine(engine)
        engine.mute = True
        with Running(spec_of(engine), replay_idle_s="0.1", replay_retry_s="0.01") as service:
            wait_until(lambda: service.metric("kv_indexer_snapshots_total", outcome="unanswered") >= 1)
            engine.mute, engine.whole_snapshot = False, None
            service.wait_for(sequence=2, trust="partial")
            assert service.matched(prompt(3, 4)) == 16


@pytest.mark.rule("E1")
def test_one_message_may_be_larger_than_others_and_keeps_nobody_waiting() -> None:
    """200,000 blocks: 40 MB in one message, of which no frame is too large."""
    events = [stored(range(start, start + 64), [100_000 + start + i // 16 for i in range(1024)], block_size=16) for start in range(0, 200_000, 64)]
    parts = [batch(events[start : start + 256]) for start in range(0, len(events), 256)]
    with with_own_port(parts) as engine:
        engine.publish(blocks_of(9, 1))
        engine.history_max = 1
        engine.publish()
        with Running(spec_of(engine), frame_bytes_max="1000000") as service:
            service.wait_for(timeout_s=60, sequence=1, trust="live")
            assert service.stream()["blocks"]["gpu"] == 200_000
            service.assert_loop_in_time()
