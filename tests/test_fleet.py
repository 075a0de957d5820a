"""The fleet and its reference against the service without Redis: what proves both before anything else is measured with them."""

import time

import pytest

from tests.fleet import Fleet
from tests.processes import serve
from tests.reference import Text
from tests.waiting import wait_until
from tests.workload import DEEDS, make_strangers, make_texts


def test_the_service_answers_what_the_reference_does_after_random_loads() -> None:
    with Fleet(seed=1, streams=8) as fleet, serve(None, *fleet.specs) as service:
        service.wait_url()
        for _ in range(5):
            fleet.play(300)
            fleet.settle(service)
        assert set(DEEDS) | {"late_offload"} <= set(fleet.deeds)
        assert service.metric("kv_indexer_orphans_total", fate="adopted") > 0
        held = [fleet.expected(prompt) for prompt in fleet.prompts]
        matched = [sum(blocks) for answer in held for _, ranks in answer for _, blocks, _ in ranks]
        assert sum(count > 0 for count in matched) > len(matched) / 10
        assert {place for answer in held for _, ranks in answer for _, blocks, _ in ranks for place, count in enumerate(blocks) if count} == {0, 1}


def test_answers_during_the_load_are_explained_by_the_last_second() -> None:
    with Fleet(seed=2, streams=4, rate=100) as fleet, serve(None, *fleet.specs) as service:
        service.wait_url()
        fleet.settle(service)
        fleet.resume()
        until_s = time.monotonic() + 4
        while time.monotonic() < until_s:
            for prompt in fleet.texts:
                assert fleet.unexplained(fleet.ask(service, prompt), window_s=4) == []
        fleet.settle(service)
        assert fleet.batches > 50


def test_engines_restart_and_are_cut_off_under_load() -> None:
    with Fleet(seed=3, streams=4, rate=100, with_proxies=True) as fleet, serve(None, *fleet.specs) as service:
        service.wait_url()
        fleet.settle(service)
        fleet.resume()
        for pod in fleet.pods:
            wait_until(lambda before=fleet.batches: fleet.batches > before + 30)
            fleet.cut(pod)
            wait_until(lambda before=fleet.batches: fleet.batches > before + 30)
            fleet.restart(pod)
        fleet.settle(service)
        assert service.metric("kv_indexer_restarts_total") > 0


def test_without_replay_it_is_equal_when_heard_from_the_start() -> None:
    with Fleet(seed=4, streams=3, with_replay=False) as fleet, serve(None, *fleet.specs) as service:
        service.wait_url()
        wait_until(lambda: all(publisher.engine.subscriptions() for publisher in fleet.publishers))
        fleet.play(200)
        fleet.settle(service)


def test_a_wrong_answer_is_told_of() -> None:
    """Batches that never arrive and are in no history: the index cannot be equal, and the check says where."""
    with Fleet(seed=5, streams=1, with_replay=False) as fleet, serve(None, *fleet.specs) as service:
        service.wait_url()
        wait_until(lambda: fleet.publishers[0].engine.subscriptions())
        text = fleet.texts[0]
        fleet.do("pod-0", lambda p: p.store(text, 0, 2))
        fleet.settle(service)
        fleet.do("pod-0", lambda p: [p.clear()], is_lost=True, is_forgotten=True)
        wrong = fleet.check(service)
        assert any("matched_tokens 8 should be 0" in line for line in wrong)
        with pytest.raises(AssertionError, match="scorer 0 differs"):
            fleet.settle(service, timeout_s=0.2)
        asked = fleet.ask(service, text)
        assert fleet.unexplained(asked, window_s=10) == []
        assert fleet.unexplained(asked._replace(start_s=time.monotonic()), window_s=0) != []


def test_a_pod_that_is_missing_and_a_trust_that_is_lower_are_told_of() -> None:
    with Fleet(seed=6, streams=2) as fleet, serve(None, *fleet.specs[:1]) as service:
        service.wait_url()
        service.wait_for(pod="pod-0", trust="live")
        wrong = fleet.check(service, trust=("partial",), prompts=[fleet.texts[0]])
        assert any("should be ['pod-0', 'pod-1']" in line for line in wrong)
        assert any(line.startswith("pod-0 is ") for line in wrong)


def test_the_same_seed_publishes_the_same() -> None:
    def published(seed: int) -> list[list[list[object]]]:
        with Fleet(seed=seed, streams=3) as fleet:
            fleet.play(100)
            return [[list(rank.copies) for _, rank in publisher.moments] for publisher in fleet.publishers]

    assert published(7) == published(7)
    assert published(7) != published(8)


def test_a_rate_is_kept_and_a_pause_is_one() -> None:
    with Fleet(seed=8, streams=2, rate=50) as fleet:
        fleet.resume()
        wait_until(lambda: fleet.batches >= 20)
        fleet.pause()
        batches = fleet.batches
        fleet.idle = set(fleet.pods)
        fleet.resume()
        time.sleep(0.2)
        fleet.pause()
        assert fleet.batches == batches


def test_a_killed_engine_publishes_nothing_and_a_new_life_holds_nothing() -> None:
    with Fleet(seed=9, streams=2) as fleet:
        fleet.play(50)
        fleet.kill("pod-1")
        dead = fleet.publisher("pod-1")
        batches, copies = dead.batches, list(dead.rank.copies)
        assert copies
        fleet.play(50)
        assert (dead.batches, dead.rank.copies) == (batches, copies)
        fleet.restart("pod-1")
        assert (dead.rank.copies, dead.lives) == ([], 2)


def test_the_texts_share_beginnings_and_differ_in_all_that_isolates() -> None:
    texts = make_texts(1)
    assert {text.lora for text in texts} == {None, "ad"}
    assert {text.salt for text in texts} == {None, "tenant"}
    assert any(text.images for text in texts)
    assert len({text.tokens[:4] for text in texts}) < len(texts)
    assert len(set(texts)) == len(texts)
    strangers = make_strangers(1, texts)
    assert Text(()) in strangers
    assert not set(strangers) & set(texts)
