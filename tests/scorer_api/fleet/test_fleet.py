"""Whole runs: each request gets its answer, the same seed gives the same run, and what is known from outside holds."""

import math
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from indexer.errors import SettingError
from scorer_api.fleet.fleet import Conditions, Fleet
from scorer_api.fleet.pod import PodModel
from scorer_api.fleet.policies import OWN, ROUTERS
from scorer_api.fleet.request import Request
from scorer_api.fleet.results import result_of
from scorer_api.fleet.workloads import Chats, ChatShape, OpenLoop, Rounds, documents, hot_weights, shared_prefixes, trace, zipf_weights

MODEL = PodModel(60_000)
PODS = 4


def workload(seed: int = 0, rate: float = 6.0) -> OpenLoop:
    return shared_prefixes([(rate, 20.0)], groups=20, prompts=0, prefix=2_000, question=300, answer=60, seed=seed)


def run(policy: str, conditions: Conditions | None = None, *, rate: float = 6.0, routers: int = 1) -> list[Request]:
    made = [ROUTERS[policy](PODS, MODEL, number) for number in range(routers)]
    return Fleet(PODS, MODEL, made, workload(rate=rate), conditions, 1).run()


@pytest.mark.parametrize("policy", ROUTERS)
def test_each_request_is_answered_by_every_policy(policy: str) -> None:
    requests = run(policy)
    assert [each.produced for each in requests] == [60] * len(requests)
    for each in requests:
        assert each.first_token_s is not None
        assert each.done_s is not None
        assert each.arrives_s < each.first_token_s <= each.done_s
        assert 0 <= each.cached_tokens < each.prompt_length
        assert each.pod in range(PODS)


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = run("cost"), run("cost")
    assert [(each.pod, each.first_token_s, each.done_s, each.cached_tokens) for each in one] == [
        (each.pod, each.first_token_s, each.done_s, each.cached_tokens) for each in other
    ]


def test_what_the_router_predicts_is_what_the_cache_has() -> None:
    """Nothing is evicted, events are quick, and prompts are far apart: each prediction is the engine's hit."""
    requests = Fleet(PODS, PodModel(600_000), [ROUTERS["cost"](PODS, PodModel(600_000), 0)], workload(rate=1.0)).run()
    assert all(each.predicted_tokens == each.cached_tokens for each in requests)
    assert sum(each.cached_tokens > 0 for each in requests) >= len(requests) - 20, "each prefix is computed once"


def test_prefixes_that_are_found_again_save_work() -> None:
    by_cost, in_turn = result_of(run("cost"), PODS), result_of(run("round-robin"), PODS)
    assert by_cost.hit_share > in_turn.hit_share + 0.2
    assert by_cost.ttft_mean_s < in_turn.ttft_mean_s


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(event_delay_s=1.0),
        Conditions(event_loss=0.3),
        Conditions(load_age_s=5.0),
        Conditions(slow_pods=((1, 3.0),)),
        Conditions(restarts=((5.0, 0), (9.0, 2))),
        Conditions(leaves=((5.0, 0),)),
        Conditions(joins=((5.0, 0),)),
    ],
    ids=["late events", "lost events", "old loads", "a slow pod", "restarts", "a pod leaves", "a pod joins"],
)
def test_each_request_is_answered_whatever_goes_wrong(conditions: Conditions) -> None:
    requests = run("cost", conditions, routers=2)
    assert [each.produced for each in requests] == [60] * len(requests)
    assert result_of(requests, PODS).hit_share > 0.3


def test_a_slow_pod_gets_less() -> None:
    requests = run("cost", Conditions(slow_pods=((1, 4.0),)), rate=14.0)
    counts = [sum(each.pod == pod for each in requests) for pod in range(PODS)]
    assert 0 < counts[1] < min(counts[0], counts[2], counts[3])


def test_routers_that_know_nothing_of_each_other_do_not_herd(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pods hold the one prefix. Routers that forget the others send to the pod that was the least busy at the last look, all at once."""

    def first_token_s() -> float:
        asked = shared_prefixes([(16.0, 20.0)], groups=1, prompts=0, prefix=2_000, question=800, answer=100)
        routers = [ROUTERS["cost"](PODS, PodModel(200_000), number) for number in range(4)]
        return result_of(Fleet(PODS, PodModel(200_000), routers, asked).run(), PODS).ttft_mean_s

    expecting = first_token_s()
    monkeypatch.setattr("scorer_api.routing.other_senders.OTHERS_MIN", math.inf)
    assert expecting < 0.8 * first_token_s()


@pytest.mark.parametrize("policy", ["cost", "round-robin", "session-hash", "weighted-scorers"])
def test_a_pod_gets_requests_while_it_is_there_only(policy: str) -> None:
    requests = run(policy, Conditions(leaves=((8.0, 0),), joins=((12.0, 3),)))
    assert {each.pod for each in requests if each.arrives_s < 8.0} == {0, 1, 2}
    assert {each.pod for each in requests if 8.0 < each.arrives_s < 12.0} <= {1, 2}
    assert {each.pod for each in requests if each.arrives_s > 12.0} == {1, 2, 3}
    assert [each.produced for each in requests] == [60] * len(requests), "what it had is answered"


@pytest.mark.parametrize("policy", OWN)
def test_an_own_policy_is_the_services_own(policy: str) -> None:
    """By session each user stays with a pod; in turn each pod gets as many."""
    requests = run(policy)
    if policy == "session":
        assert len({(each.user, each.pod) for each in requests}) <= 20 + 5
    if policy == "round-robin":
        counts = [sum(each.pod == pod for each in requests) for pod in range(PODS)]
        assert max(counts) - min(counts) <= 1


def test_chats_are_a_closed_loop() -> None:
    shape = ChatShape(system=200, first=100, more=40, answer=30, turns=3, think_s=2.0)
    requests = Fleet(PODS, MODEL, [ROUTERS["cost"](PODS, MODEL, 0)], Chats(10, shape, 60.0, ramp_s=5.0)).run()
    by_user: dict[int, list[Request]] = {}
    for each in requests:
        by_user.setdefault(each.user, []).append(each)
    assert len(by_user) == 10
    for asked in by_user.values():
        for before, after in pairwise(asked):
            assert before.done_s is not None
            assert after.arrives_s > before.done_s, "nobody asks before the answer is there"
            if len(after.segments) > 3:
                assert after.segments[: len(before.segments) + 1] == (*before.segments, before.output), "a turn begins with what was said"


def test_users_ask_the_same_whatever_their_turn() -> None:
    """Lengths are a user's own: who is answered first makes no difference to what others ask."""
    shape = ChatShape(system=200, first=100, more=40, answer=30, turns=3, think_s=2.0)
    asked = []
    for policy in ("cost", "least-waiting"):
        requests = Fleet(PODS, MODEL, [ROUTERS[policy](PODS, MODEL, 0)], Chats(10, shape, 60.0, ramp_s=5.0)).run()
        asked.append([[(each.segments[-1][1], each.output_length) for each in requests if each.user == user] for user in range(10)])
    for one, other in zip(*asked, strict=True):
        same = min(len(one), len(other))
        assert same > 3
        assert one[:same] == other[:same]


def test_a_round_begins_after_the_last_answer_of_the_one_before() -> None:
    rounds = [shared_prefixes([(4.0, 5.0)], groups=3, prompts=2, prefix=200, question=50, answer=20, seed=seed) for seed in range(3)]
    sizes = [len(each.first()) for each in rounds]
    requests = Fleet(PODS, MODEL, [ROUTERS["cost"](PODS, MODEL, 0)], Rounds(rounds, 10.0)).run()
    assert [each.number for each in requests] == list(range(sum(sizes)))
    for start in (sizes[0], sizes[0] + sizes[1]):
        ended_s = max(each.done_s or math.inf for each in requests[:start])
        assert requests[start].arrives_s >= ended_s + 10.0
    assert len({each.output[0] for each in requests}) == len(requests), "each answer is another one"


def test_weights() -> None:
    assert zipf_weights(3) == [1, 1 / 2, 1 / 3]
    assert hot_weights(5, 0.6) == [0.6, 0.1, 0.1, 0.1, 0.1]


def test_documents_share_what_comes_first() -> None:
    asked = documents([(5.0, 10.0)], documents=10, pieces=3, piece=200, system=100, question=50, answer=20).first()
    assert {each.segments[0] for each in asked} == {(1, 100)}
    assert {each.prompt_length for each in asked} == {100 + 3 * 200 + 50}


def row(timestamp: int, length: int, hashes: list[int]) -> bytes:
    return msgspec.json.encode({"timestamp": timestamp, "input_length": length, "output_length": 5, "hash_ids": hashes})


def test_a_trace_and_its_partial_blocks(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"\n".join([row(0, 1300, [1, 2, 3]), row(2000, 1024, [1, 4]), row(3000, 9000, list(range(100, 118)))]))
    first, second = trace(path, speed=2.0, tokens_max=5000).first()
    assert first.segments == ((1, 512), (2, 512), (3, 276))
    assert second.segments == ((1, 512), (4, 512))
    assert (first.arrives_s, second.arrives_s, second.output_length) == (0.0, 1.0, 5)
    assert len(trace(path, most=1).first()) == 1


@pytest.mark.parametrize(("line", "why"), [(b"{}", "missing required field"), (row(0, 600, [1]), "fewer hash_ids"), (b"no JSON", "line 1")])
def test_a_trace_that_is_none_is_refused(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(line)
    with pytest.raises(SettingError, match=why):
        trace(path)
