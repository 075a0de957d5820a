"""What a subscriber survives, over real sockets. The numbers in the headings are those of the list in docs/explanation/wire-format.md.

Every test says which mechanism it is about; `make test-mechanisms` switches that off and sees the test fail.
"""

import re
import signal
import subprocess
import sys

import pytest

from tests.engine import BLOCK_SIZE, Engine, cleared, removed, stored
from tests.proxy import Proxy
from tests.running import ROOT, Running
from tests.waiting import wait_until

mechanism = pytest.mark.mechanism


def prompt(number: int, blocks: int) -> list[int]:
    """A prompt whose `blocks` blocks are all usable, and which shares none with other numbers."""
    return [1000 * number + position for position in range(blocks * BLOCK_SIZE + 1)]


def hashes(number: int, blocks: int, start: int = 0) -> list[int]:
    return [1000 * number + position for position in range(start, blocks)]


def blocks_of(number: int, stop: int, start: int = 0) -> dict[str, object]:
    """The event that stores blocks `start` to `stop` of a prompt."""
    tokens = prompt(number, stop)[start * BLOCK_SIZE : stop * BLOCK_SIZE]
    return stored(hashes(number, stop, start), tokens, parent=1000 * number + start - 1 if start else None)


# 1. A gap


@mechanism("no_replay_of_gaps")
def test_batches_lost_on_the_way_are_asked_for_again() -> None:
    """Among them a removal, which nobody would miss but for the sequence."""
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.publish(blocks_of(2, 4), is_lost=True)
        engine.publish(removed(hashes(1, 4, 2)), is_lost=True)
        engine.publish(blocks_of(3, 1))
        status = service.wait_for(sequence=3, trust="live")
        assert (status["gaps"], status["replayed"], status["batches"]) == (1, 3, 4)
        assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [8, 16, 4]
        assert 1 in engine.asked


@mechanism("no_contiguity_check")
def test_a_reply_with_a_hole_that_is_filled_later_is_asked_for_again() -> None:
    """The end marker does not prove that a reply is whole: the ROUTER drops at its own high-water mark."""
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4), is_lost=True)
        engine.publish(blocks_of(2, 4), is_lost=True)
        engine.publish(removed(hashes(1, 4)), is_lost=True)
        engine.lost_replies = {1}
        engine.publish(blocks_of(3, 1))
        service.wait_for(sequence=3, trust="live")
        assert [start for start in engine.asked if start <= 1][-2:] == [0, 1]
        assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [0, 16, 4]


@mechanism("no_asking_again")
def test_a_replay_without_a_marker_is_asked_for_again_from_where_it_broke_off() -> None:
    """Until it has ended the stream is stale: what came so far is not all."""
    with Engine() as engine:
        engine.with_marker = False
        engine.reply_count_max = 1
        for number in (1, 2, 3):
            engine.publish(blocks_of(number, 4))
        with Running(engine.spec()) as service:
            seen: set[tuple[int | None, str]] = set()

            def has_come_through() -> bool:
                status = service.stream()
                seen.add((status["sequence"], status["trust"]))
                return bool(status["sequence"] == 2)

            wait_until(has_come_through)
            assert {trust for _, trust in seen} == {"stale"}
            assert engine.asked[:3] == [0, 1, 2]
            engine.with_marker = True
            service.wait_for(sequence=2, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [16, 16, 16]


@mechanism("no_replay_of_gaps")
def test_a_replay_that_ends_too_early_is_followed_by_another() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.reply_count_max = 2
        for number in (1, 2, 3, 4, 5):
            engine.publish(blocks_of(number, 4), is_lost=True)
        engine.publish(blocks_of(6, 1))
        status = service.wait_for(sequence=5, trust="live")
        assert status["batches"] == 6
        assert [service.matched(prompt(number, 4)) for number in range(1, 7)] == [16, 16, 16, 16, 16, 4]


@mechanism("no_permanent_holes")
def test_a_hole_that_no_replay_fills_costs_what_was_held_and_nothing_after_it() -> None:
    """A batch that failed to encode has a number but never existed."""
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.reply_count_max = 0
        engine.publish(removed(hashes(1, 4)), is_lost=True, is_forgotten=True)
        engine.publish(blocks_of(2, 4))
        status = service.wait_for(sequence=2, trust="partial")
        assert status["gaps"] == 1
        assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [0, 16]
        engine.publish(blocks_of(2, 5, start=4))
        service.wait_for(sequence=3, trust="partial")
        assert service.matched(prompt(2, 5)) == 20


@mechanism("no_purge_of_lost_history")
def test_a_hole_inside_the_history_costs_what_was_held_before_it() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.publish(blocks_of(2, 4), is_lost=True)
        engine.publish(removed(hashes(1, 4)), is_lost=True, is_forgotten=True)
        engine.publish(blocks_of(3, 4), is_lost=True)
        engine.publish(blocks_of(4, 4))
        service.wait_for(sequence=4, trust="partial")
        assert [service.matched(prompt(number, 4)) for number in (1, 2, 3, 4)] == [0, 0, 16, 16]


@mechanism("one_reply_shape")
def test_replies_without_a_topic_are_read_like_those_with_one() -> None:
    """vLLM up to 0.25 and SGLang up to 0.5.21 send three frames."""
    with Engine(with_topic_in_replies=False) as engine:
        engine.publish(blocks_of(1, 4))
        with Running(engine.spec()) as service:
            service.wait_for(sequence=0, trust="live")
            engine.publish(blocks_of(2, 4), is_lost=True)
            engine.publish(blocks_of(3, 4))
            service.wait_for(sequence=2, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [16, 16, 16]


@mechanism("no_patience")
def test_a_replay_that_is_never_answered_leaves_the_stream_stale_and_is_asked_for_again() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.mute = True
        engine.publish(removed(hashes(1, 4)), is_lost=True)
        engine.publish(blocks_of(2, 4))
        wait_until(lambda: engine.asked.count(1) >= 3)
        status = service.wait_for(sequence=0, trust="stale")
        assert "does not answer" in status["last_error"]
        assert service.score(prompt(1, 4))["pods"][0]["trust"] == "stale"
        engine.mute = False
        service.wait_for(sequence=2, trust="live", last_error=None)
        assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [0, 16]


@mechanism("no_giving_up")
def test_a_stream_whose_replays_are_never_answered_goes_on_as_partial_in_the_end() -> None:
    with Engine() as engine:
        engine.mute = True
        engine.publish(blocks_of(1, 4))
        with Running(engine.spec(), replay_give_up_s="1") as service:
            wait_until(lambda: engine.subscriptions() > 0)
            engine.publish(blocks_of(2, 4))
            service.wait_for(sequence=1, trust="partial")
            assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [0, 16]


# 2. History that is gone


@mechanism("no_purge_of_lost_history")
def test_a_gap_older_than_the_history_costs_what_was_held() -> None:
    with Engine(history_max=2) as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.publish(removed(hashes(1, 4)), is_lost=True)
        for number in (2, 3):
            engine.publish(blocks_of(number, 4), is_lost=True)
        engine.publish(blocks_of(4, 4))
        service.wait_for(sequence=4, trust="partial")
        assert [service.matched(prompt(number, 4)) for number in (1, 2, 3, 4)] == [0, 0, 16, 16]


@mechanism("no_clearing")
def test_a_partial_stream_is_live_again_after_a_clear() -> None:
    with Engine(history_max=2) as engine:
        for number in (1, 2, 3):
            engine.publish(blocks_of(number, 4))
        with Running(engine.spec()) as service:
            service.wait_for(sequence=2, trust="partial")
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3)] == [0, 16, 16]
            engine.publish(cleared(), blocks_of(4, 4))
            service.wait_for(sequence=3, trust="live")
            assert [service.matched(prompt(number, 4)) for number in (1, 2, 3, 4)] == [0, 0, 0, 16]


@pytest.mark.parametrize("is_told_before", [True, False])
def test_a_partial_stream_stays_partial_after_a_clear_where_blocks_lie_below_the_gpu(is_told_before: bool) -> None:
    """A clear empties the gpu alone: what was offloaded before the service came is still unknown. A second clear of a batch empties what is below."""
    offloaded = stored([901], [], block_size=0, medium="CPU")
    with Engine(history_max=1) as engine:
        engine.publish(blocks_of(1, 4))
        engine.publish(*([offloaded] if is_told_before else []), blocks_of(2, 4))
        with Running(engine.spec()) as service:
            service.wait_for(sequence=1, trust="partial")
            engine.publish(cleared(), blocks_of(4, 4))
            service.wait_for(sequence=2, trust="partial" if is_told_before else "live")
            engine.publish(offloaded)
            service.wait_for(sequence=3, trust="partial")
            engine.publish(cleared(), cleared(), blocks_of(4, 4))
            service.wait_for(sequence=4, trust="live")


@mechanism("no_parking")
def test_after_lost_history_blocks_are_still_joined_to_parents_announced_before() -> None:
    """The parent is stored again only later; until then its child waits."""
    with Engine(history_max=1) as engine:
        engine.publish(blocks_of(1, 2))
        engine.publish(blocks_of(1, 4, start=2))
        with Running(engine.spec()) as service:
            service.wait_for(sequence=1, trust="partial")
            assert service.matched(prompt(1, 4)) == 0
            engine.publish(blocks_of(1, 2))
            service.wait_for(sequence=2)
            assert service.matched(prompt(1, 4)) == 16


# 3. Restarts


@mechanism("no_fingerprint")
@pytest.mark.parametrize("batches", [1, 3, 5], ids=["lower", "equal", "already higher"])
def test_an_engine_that_was_restarted_is_known_by_its_history(batches: int) -> None:
    """Its new sequence, when the service meets it, is lower than the old one, equal to it, or already higher."""
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        for number in (1, 2, 3):
            engine.publish(blocks_of(number, 4))
        service.wait_for(sequence=2)
        engine.kill()
        service.wait_for(connected=False, trust="stale")
        engine.start()
        for number in range(11, 11 + batches):
            engine.publish(blocks_of(number, 4))
        status = service.wait_for(connected=True, sequence=batches - 1, trust="live")
        assert status["restarts"] == 1
        assert status["blocks"] == {"gpu": 4 * batches}
        assert [service.matched(prompt(number, 4)) for number in (1, 2, 3, 11)] == [0, 0, 0, 16]


@mechanism("no_fingerprint")
def test_an_engine_that_was_restarted_and_says_nothing_yet_holds_nothing() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.kill()
        service.wait_for(trust="stale")
        assert service.matched(prompt(1, 4)) == 16
        engine.start()
        service.wait_for(connected=True, sequence=None, restarts=1, trust="live")
        assert service.matched(prompt(1, 4)) == 0


@mechanism("no_purge_of_lost_history")
def test_a_reconnect_whose_last_batch_is_no_longer_in_the_history_cannot_be_told_from_a_restart() -> None:
    # The new process has published all three batches when the service connects again.
    with Engine(history_max=2) as engine, Running(engine.spec(), reconnect_s="1") as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.kill()
        service.wait_for(trust="stale")
        engine.start()
        for number in (2, 3, 4):
            engine.publish(blocks_of(number, 4))
        service.wait_for(connected=True, sequence=2, trust="partial")
        assert [service.matched(prompt(number, 4)) for number in (1, 2, 3, 4)] == [0, 0, 16, 16]


@mechanism("every_reconnect_is_a_restart")
def test_a_reconnect_to_the_same_engine_keeps_everything_and_fetches_what_was_missed() -> None:
    with Engine() as engine, Proxy(engine.events_port) as proxy:
        spec = f"pod=pod,model=m,events=tcp://127.0.0.1:{proxy.port},replay=tcp://127.0.0.1:{engine.replay_port}"
        with Running(spec) as service:
            service.wait_for(trust="live")
            engine.publish(blocks_of(1, 4))
            service.wait_for(sequence=0)
            proxy.cut()
            engine.publish(blocks_of(2, 4), is_lost=True)
            service.wait_for(sequence=1, trust="live")
            status = service.stream()
            assert (status["restarts"], status["blocks"]) == (0, {"gpu": 8})


@mechanism("no_regress")
def test_a_regress_on_one_connection_is_a_restart_too() -> None:
    """Something between us and the engine can hide that its connection went down."""
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        for number in (1, 2, 3):
            engine.publish(blocks_of(number, 4))
        service.wait_for(sequence=2)
        engine.history.clear()
        engine.next_number = 0
        engine.publish(blocks_of(11, 4))
        status = service.wait_for(sequence=0, trust="live")
        assert status["restarts"] == 1
        assert [service.matched(prompt(number, 4)) for number in (1, 2, 3, 11)] == [0, 0, 0, 16]


# 4. No replay endpoint


def test_without_replay_a_stream_heard_from_its_start_is_live() -> None:
    with Engine(with_replay=False) as engine, Running(engine.spec()) as service:
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0, trust="live")
        assert service.matched(prompt(1, 4)) == 16


@mechanism("no_purge_of_lost_history")
def test_without_replay_a_gap_costs_what_was_held_until_a_clear() -> None:
    with Engine(with_replay=False) as engine, Running(engine.spec()) as service:
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0, trust="live")
        engine.publish(removed(hashes(1, 4)), is_lost=True)
        engine.publish(blocks_of(2, 4))
        assert service.wait_for(sequence=2, trust="partial")["gaps"] == 1
        assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [0, 16]
        engine.publish(cleared())
        service.wait_for(sequence=3, trust="live")


@mechanism("no_regress")
def test_without_replay_a_regress_is_a_restart() -> None:
    with Engine(with_replay=False) as engine, Running(engine.spec()) as service:
        wait_until(lambda: engine.subscriptions() > 0)
        for number in (1, 2):
            engine.publish(blocks_of(number, 4))
        service.wait_for(sequence=1, trust="live")
        engine.next_number = 0
        engine.publish(blocks_of(11, 4))
        assert service.wait_for(sequence=0, trust="live")["restarts"] == 1
        assert [service.matched(prompt(number, 4)) for number in (1, 2, 11)] == [0, 0, 16]


@mechanism("no_doubt_of_reconnects")
def test_without_replay_a_reconnect_is_stale_until_it_continues_and_partial_then() -> None:
    with (
        Engine(with_replay=False) as engine,
        Proxy(engine.events_port) as proxy,
        Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{proxy.port}") as service,
    ):
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0, trust="live")
        proxy.cut()
        wait_until(lambda: engine.subscriptions() > 1)
        service.wait_for(connected=True, trust="stale")
        engine.publish(blocks_of(2, 4))
        service.wait_for(sequence=1, trust="partial")
        assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [16, 16]


@mechanism("no_purge_of_lost_history")
def test_without_replay_a_reconnect_that_does_not_continue_costs_what_was_held() -> None:
    with (
        Engine(with_replay=False) as engine,
        Proxy(engine.events_port) as proxy,
        Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{proxy.port}") as service,
    ):
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0, trust="live")
        proxy.cut()
        wait_until(lambda: engine.subscriptions() > 1)
        engine.publish(removed(hashes(1, 4)), is_lost=True)
        engine.publish(blocks_of(2, 4))
        service.wait_for(sequence=2, trust="partial")
        assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [0, 16]


@mechanism("no_forgetting")
@pytest.mark.parametrize("next_number", [0, 7], ids=["lower", "already higher"])
def test_without_replay_a_restarted_engine_holds_only_what_it_says_from_then_on(next_number: int) -> None:
    with Engine(with_replay=False) as engine, Running(engine.spec()) as service:
        wait_until(lambda: engine.subscriptions() > 0)
        for number in (1, 2, 3):
            engine.publish(blocks_of(number, 4))
        service.wait_for(sequence=2, trust="live")
        engine.kill()
        service.wait_for(connected=False)
        engine.start(next_number)
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(blocks_of(11, 4))
        service.wait_for(sequence=next_number, trust="live" if next_number == 0 else "partial")
        assert [service.matched(prompt(number, 4)) for number in (1, 2, 3, 11)] == [0, 0, 0, 16]


# 5. A lost last batch


@mechanism("no_probe_of_silence")
def test_a_lost_last_batch_is_found_though_nothing_follows_it() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.publish(removed(hashes(1, 4, 1)), is_lost=True)
        service.wait_for(sequence=1, trust="live")
        assert service.matched(prompt(1, 4)) == 4


# 6. A late join


@mechanism("no_first_replay")
def test_a_late_service_asks_for_everything_from_the_start() -> None:
    with Engine() as engine:
        engine.publish(blocks_of(1, 4))
        engine.publish(removed(hashes(1, 4, 3)))
        with Running(engine.spec()) as service:
            status = service.wait_for(sequence=1, trust="live")
            assert (status["gaps"], status["replayed"], status["restarts"]) == (0, 2, 0)
            assert service.matched(prompt(1, 4)) == 12


@mechanism("no_parking")
def test_an_orphan_is_adopted_when_its_parent_arrives() -> None:
    """Without a replay a late join sees children first; a child removed meanwhile is not adopted."""
    with Engine(with_replay=False) as engine, Running(engine.spec()) as service:
        wait_until(lambda: engine.subscriptions() > 0)
        engine.next_number = 40
        engine.publish(blocks_of(1, 3, start=2))
        engine.publish(blocks_of(1, 5, start=3))
        engine.publish(removed(hashes(1, 5, 4)))
        service.wait_for(sequence=42)
        assert service.matched(prompt(1, 5)) == 0
        assert service.metric("kv_indexer_orphans_parked") == 3
        engine.publish(blocks_of(1, 2))
        service.wait_for(sequence=43)
        assert service.matched(prompt(1, 5)) == 16
        assert service.metric("kv_indexer_orphans_parked") == 0


# 7. Frames that are none


def test_frames_that_are_none_are_counted_and_cost_nothing() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        engine.send([b"", b"\0" * 8])
        engine.send([b"", b"\0" * 7, b"x"])
        engine.send([b"", b"\xff" * 8, b"x"])
        engine.send([b"", b"\0" * 8, b"x", b"y"])
        engine.publish(blocks_of(2, 4))
        service.wait_for(sequence=1, trust="live")
        assert service.metric("kv_indexer_refused_total", reason="frame_count") == 2
        assert service.metric("kv_indexer_refused_total", reason="frame_sequence") == 2
        assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [16, 16]


def test_a_payload_that_is_none_is_counted_and_makes_the_stream_partial() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        engine.publish_payload(b"\xc1")
        engine.publish(blocks_of(2, 4))
        status = service.wait_for(sequence=2, trust="partial")
        assert status["last_error"] == "refused: batch_malformed"
        assert service.metric("kv_indexer_refused_total", reason="batch_malformed") == 1
        assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [16, 16]


def test_a_frame_over_the_limit_costs_the_connection_and_is_recovered_from() -> None:
    """The engine keeps the batch; each time it is asked for, its frame is refused again, so what follows is had without it."""
    with Engine() as engine, Running(engine.spec(), frame_bytes_max="2000", replay_give_up_s="1") as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.publish_payload(bytes(5000), is_forgotten=True)
        engine.publish(blocks_of(2, 4))
        service.wait_for(sequence=2, connected=True)
        assert service.matched(prompt(2, 4)) == 16


# 8. Peers that die, and peers that are silent


@mechanism("no_heartbeats")
def test_a_frozen_engine_is_stale_though_its_connection_is_open() -> None:
    """SIGSTOP: no FIN ever comes."""
    words = [sys.executable, "-m", "scorer_api.cli", "demo-engine"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as engine:
        try:
            assert engine.stdout is not None
            spec = engine.stdout.readline().strip()
            with Running(spec, heartbeat_s="0.2", heartbeat_timeout_s="0.6") as service:
                service.wait_for(pod="demo-0", trust="live")
                engine.send_signal(signal.SIGSTOP)
                service.wait_for(pod="demo-0", trust="stale", connected=False)
                engine.send_signal(signal.SIGCONT)
                service.wait_for(pod="demo-0", trust="live", restarts=0)
        finally:
            engine.kill()


@mechanism("no_expiry")
def test_an_engine_that_goes_away_for_good_is_stale_and_then_expired() -> None:
    with Engine() as engine, Running(engine.spec(), pod_expiry_s="2") as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        engine.kill()
        service.wait_for(trust="stale")
        assert service.matched(prompt(1, 4)) == 16
        service.wait_for(trust="expired", sequence=None, blocks={"gpu": 0})
        pod = service.score(prompt(1, 4))["pods"][0]
        assert (pod["pod"], pod["matched_tokens"], pod["trust"]) == ("pod", 0, "expired")
        assert service.metric("kv_indexer_index_holders") == 0
        engine.start()
        engine.publish(blocks_of(2, 4))
        service.wait_for(trust="live", sequence=0)
        assert [service.matched(prompt(number, 4)) for number in (1, 2)] == [0, 16]


@mechanism("silence_is_death")
def test_a_silent_engine_that_is_alive_does_not_expire() -> None:
    """Its silence is many times as long as `pod_expiry_s`; that it is asked whether a batch was lost is how the time is told."""
    with Engine() as engine, Running(engine.spec(), pod_expiry_s="0.2") as service:
        service.wait_for(trust="live")
        engine.publish(blocks_of(1, 4))
        service.wait_for(sequence=0)
        asked = len(engine.asked)
        wait_until(lambda: len(engine.asked) >= asked + 3)
        assert service.stream()["trust"] == "live"
        assert service.matched(prompt(1, 4)) == 16


# What the log says


def test_a_stream_logs_a_line_per_change_of_its_state_and_none_per_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="indexer")
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        for number in range(1, 51):
            engine.publish(blocks_of(number, 4))
        service.wait_for(sequence=49)
        engine.kill()
        service.wait_for(trust="stale")
    changes = [(record.__dict__["was"], record.__dict__["trust"]) for record in caplog.records if record.message == "stream changed"]
    assert changes == [("stale", "live"), ("live", "stale")]
    assert not [record for record in caplog.records if re.search("event|batch", record.message)]
