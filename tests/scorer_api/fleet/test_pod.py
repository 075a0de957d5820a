"""One pod in virtual time, its figures worked out by hand."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from scorer_api.fleet.pod import Pod, PodModel, PromptTooLongError, StepResult
from scorer_api.fleet.request import Request

# A step takes a second, a prompt token a millisecond, and nothing else counts.
PLAIN = PodModel(64_000, prefill_tokens_per_s=1000, step_s=1.0, sequence_s=0.0, context_s=0.0, block_size=16, step_tokens=1000)


def request(number: int, prompt: int, answer: int, *, shared: int = 0, arrives_s: float = 0.0) -> Request:
    return Request(number, arrives_s, ((1, shared), (100 + number, prompt - shared)), (1000 + number, answer))


def play(pod: Pod, *requests: Request) -> list[StepResult]:
    """All of these arrive at their times, and are answered."""
    results, waiting = [], sorted(requests, key=lambda each: each.arrives_s)
    while waiting or pod.ends_s != math.inf:
        if waiting and waiting[0].arrives_s <= pod.ends_s:
            first = waiting.pop(0)
            pod.submit(first, first.arrives_s)
        else:
            results.append(pod.finish_step())
    return results


def test_a_lone_request() -> None:
    """1,500 tokens in chunks of 1,000 and 500, each in a step of its own; then a step for each further token."""
    one = request(0, 1500, 4)
    play(Pod(0, PLAIN), one)
    assert one.first_token_s == pytest.approx(2.0 + 1.5)
    assert one.done_s == pytest.approx(3.5 + 3)
    assert (one.produced, one.cached_tokens) == (4, 0)


def test_a_prefix_is_taken_from_the_cache_up_to_the_last_whole_block_before_the_last_token() -> None:
    pod = Pod(0, PLAIN)
    first, second, same = (request(number, length, 1, shared=168) for number, length in ((0, 320), (1, 400), (0, 320)))
    play(pod, first)
    second.arrives_s, same.arrives_s = 50.0, 60.0
    play(pod, second, same)
    assert second.cached_tokens == 160, "ten whole blocks of 168 shared tokens"
    assert second.first_token_s == pytest.approx(50 + 1 + 0.24)
    assert same.cached_tokens == 304, "19 of 20 blocks: the last token is always computed"


def test_requests_that_generate_share_steps_and_a_new_one_waits_for_the_end_of_one_only() -> None:
    pod = Pod(0, PLAIN)
    long, late = request(0, 100, 20), request(1, 100, 3, arrives_s=5.5)
    play(pod, long, late)
    # The long one's steps end at 1.1, 2.1 …; the late one gets into that which begins at 6.1.
    assert late.first_token_s == pytest.approx(6.1 + 1.1)
    assert late.done_s == pytest.approx(7.2 + 2)
    assert long.done_s == pytest.approx(1.1 + 19 + 0.1)


def test_the_budget_of_a_step_is_for_those_that_generate_first() -> None:
    pod = Pod(0, PLAIN)
    first, second = request(0, 16, 50), request(1, 2000, 1, arrives_s=1.5)
    play(pod, first, second)
    # 999 tokens in a step beside the first one's: 2,000 take three.
    assert second.first_token_s == pytest.approx(2.016 + 3 + 2.0)


def test_a_request_that_does_not_fit_waits_and_those_behind_it_too() -> None:
    small = PodModel(640, prefill_tokens_per_s=1000, step_s=1.0, sequence_s=0.0, context_s=0.0, block_size=16)
    pod = Pod(0, small)
    first, large, behind = request(0, 400, 5), request(1, 300, 1), request(2, 16, 1)
    play(pod, first, large, behind)
    assert first.done_s is not None
    assert large.first_token_s is not None
    assert behind.first_token_s is not None
    assert large.first_token_s > first.done_s
    assert behind.first_token_s >= large.first_token_s


def test_who_came_last_is_preempted_where_answers_need_room_and_gets_all_its_tokens_in_the_end() -> None:
    small = PodModel(640, prefill_tokens_per_s=1000, step_s=1.0, sequence_s=0.0, context_s=0.0, block_size=16)
    pod = Pod(0, small)
    first, second = request(0, 304, 200), request(1, 304, 200)
    play(pod, first, second)
    assert (first.preemptions, second.preemptions > 0) == (0, True)
    assert (first.produced, second.produced) == (200, 200)
    assert second.done_s is not None
    assert first.done_s is not None
    assert second.done_s > first.done_s


def test_one_that_can_never_fit_is_refused() -> None:
    with pytest.raises(PromptTooLongError, match="do not fit"):
        Pod(0, PodModel(640, block_size=16)).submit(request(0, 600, 200), 0.0)


def test_events_tell_what_the_cache_holds() -> None:
    """Many requests in a small cache: blocks stored and removed, in their order, leave what is there."""
    model = PodModel(16 * 200, prefill_tokens_per_s=1000, step_s=0.1, sequence_s=0.0, context_s=0.0, block_size=16)
    pod = Pod(0, model)
    requests = [request(number, 320 + 7 * number, 30, shared=16 * (number % 5), arrives_s=0.7 * number) for number in range(60)]
    held: set[int] = set()
    removed = 0
    for result in play(pod, *requests):
        for event in result.events:
            if isinstance(event, list):
                assert held.issuperset(event)
                held.difference_update(event)
                removed += len(event)
            else:
                held.update(event.request.hashes(16)[event.start : event.stop])
    assert removed > 100
    assert len(held) == len(pod.cache) <= 200
    assert all(block in pod.cache for block in held)
    assert (pod.cache.used, len(pod.running)) == (0, 0)
    assert Counter(each.produced for each in requests) == {30: 60}


def test_a_slow_pod_takes_longer() -> None:
    one = request(0, 500, 3)
    play(Pod(0, PLAIN, slow_down=2.0), one)
    assert one.done_s == pytest.approx(2 * (1.5 + 2))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(20, 2_500), st.integers(1, 40), st.floats(0.0, 3.0)), min_size=1, max_size=25))
def test_work_is_done_once_and_never_put_off(asked: list[tuple[int, int, int, float]]) -> None:
    """Steps cost nothing but the computing of prompts: a pod is busy for as long as that takes, and done when any server that never rests is."""
    pod = Pod(0, structs.replace(PLAIN, kv_tokens=640_000, step_s=0.0))
    requests, now_s = [], 0.0
    for number, (prefix, length, answer, gap_s) in enumerate(asked):
        now_s += gap_s
        requests.append(Request(number, now_s, ((prefix, length // 2), (100 + number, length - length // 2)), (1000 + number, answer)))
    waiting = list(requests)
    while waiting or pod.ends_s != math.inf:
        if waiting and waiting[0].arrives_s <= pod.ends_s:
            first = waiting.pop(0)
            pod.submit(first, first.arrives_s)
        else:
            pod.finish_step()
        assert (pod.ends_s == math.inf) == (not pod.running and not pod.waiting), "it rests only while nobody waits"
        assert pod.cache.used <= pod.cache.capacity
    computed = [each.prompt_length - each.cached_tokens for each in requests]
    assert pod.busy_s == pytest.approx(sum(computed) / 1000)
    ends_s = 0.0
    for request, tokens in zip(requests, computed, strict=True):
        ends_s = max(ends_s, request.arrives_s) + tokens / 1000
    assert max(each.done_s or 0.0 for each in requests) == pytest.approx(ends_s)
    assert [each.produced for each in requests] == [answer for _, _, answer, _ in asked]
    assert (pod.counters.prompt_tokens, pod.counters.prefill_tokens) == (sum(each.prompt_length for each in requests), sum(computed))
