"""How long a pod would take, worked out by hand; and what is taken for a figure that nobody told."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.engines.load import Load
from scorer_api.routing.costs import LoadEstimate, PodQueue, estimate_loads


@pytest.mark.parametrize(
    ("estimate", "own", "output_tokens", "load_s"),
    [
        (LoadEstimate(0, 0, 0.0, 1000), (0, 0), 0, 0.0),
        # Each running request adds 0.1 ms to the first step and to each of 99 more.
        (LoadEstimate(0, 20, 0.0, 1000), (0, 5), 99, 25 * 100 * 0.0001),
        # More are done since than ran then: one started and ended between two measurements.
        (LoadEstimate(0, 2, 0.0, 1000), (0, -3), 99, 0.0),
        # Where nobody says how long the answer will be: 128 tokens.
        (LoadEstimate(0, 20, 0.0, 1000), (0, 0), None, 20 * 129 * 0.0001),
        # Up to 80 % of the cache costs nothing; half-way from there to full a quarter of 2 s, full all of it.
        (LoadEstimate(0, 0, 0.8, 1000), (0, 0), 0, 0.0),
        (LoadEstimate(0, 0, 0.9, 1000), (0, 0), 0, 0.5),
        (LoadEstimate(0, 0, 1.0, 1000), (0, 0), 0, 2.0),
    ],
)
def test_what_lies_before_a_request(estimate: LoadEstimate, own: tuple[int, int], output_tokens: int | None, load_s: float) -> None:
    new_tokens, new_count = own
    assert estimate.costs_s(0, output_tokens, PodQueue(new_tokens=new_tokens, new_count=new_count), 0)[1] == pytest.approx(load_s)


@pytest.mark.parametrize(
    ("estimate", "own_tokens", "uncached_tokens", "output_tokens", "load_s", "cost_s"),
    [
        # 1,000 tokens are computed in 1 s, and that counts two and a quarter times.
        (LoadEstimate(0, 0, 0.0, 1000), 0, 1000, 0, 0.0, 2.25),
        # Nobody tells how much there is room for: what comes takes none.
        (LoadEstimate(0, 0, 0.8, 1000), 0, 1000, 0, 0.0, 2.25),
        # 1,000 of 10,000 tokens: from 80 to 90 %, half-way to full.
        (LoadEstimate(0, 0, 0.8, 1000, 10_000), 0, 1000, 0, 0.0, 2.25 + 0.5),
        # The answer needs room too; of it nothing is computed beforehand.
        (LoadEstimate(0, 0, 0.8, 1000, 10_000), 0, 600, 400, 0.0, 1.35 + 0.5),
        # What was sent there before takes its room for this one and for whatever else comes: 70 + 20 %, and then 100 %.
        (LoadEstimate(0, 0, 0.7, 1000, 10_000), 2000, 1000, 0, 0.5, 2.25 + 2.0),
        # More than full is full.
        (LoadEstimate(0, 0, 0.9, 1000, 10_000), 0, 50_000, 0, 0.5, 112.5 + 2.0),
    ],
)
def test_what_a_request_needs_room_for(
    estimate: LoadEstimate, own_tokens: int, uncached_tokens: int, output_tokens: int, load_s: float, cost_s: float
) -> None:
    queue = PodQueue(new_tokens=own_tokens)
    assert estimate.costs_s(uncached_tokens, output_tokens, queue, 0) == (pytest.approx(cost_s), pytest.approx(load_s))


def test_what_all_tell_is_taken_as_it_is() -> None:
    loads = [Load(2, 3, 0.25, 100.0, 5000.0), Load(0, 0, 0.75, 900.0, 50.0)]
    assert estimate_loads(loads, 8000.0) == [
        LoadEstimate(300.0, 2, 0.25, 5000.0, waiting=3, running_mean=1.0),
        LoadEstimate(0.0, 0, 0.75, 50.0, running_mean=1.0),
    ]


def test_prompts_that_wait_count_by_what_the_cache_does_not_have() -> None:
    loads = [Load(0, 3, 0.1, 1000.0, 500.0, uncached_tokens_mean=50.0), Load(0, 3, 0.1, 1000.0, 500.0)]
    assert [estimate.waiting_tokens for estimate in estimate_loads(loads, 8000.0)] == [150.0, 3000.0]


@pytest.mark.parametrize(("rate", "queued_s"), [(1000, 3.5), (2000, 1.75)])
def test_what_is_queued_lies_before_a_request(rate: float, queued_s: float) -> None:
    assert LoadEstimate(0, 0, 0.0, rate).costs_s(0, 0, PodQueue(3500), 0) == (pytest.approx(queued_s), pytest.approx(queued_s))


def test_running_requests_wait_for_prompts_that_are_computed_beside_them() -> None:
    """1 s of this prompt slows each of ten requests by a fifth of that, 2 s of queue by 0.08, and two that are not computed by a tenth as much.

    The prompt counts two and a quarter times besides.
    """
    cost_s, load_s = LoadEstimate(0, 9, 0.0, 1000, running_mean=1e9).costs_s(1000, 0, PodQueue(2000, pending=2, new_count=3), 0)
    assert load_s == pytest.approx(2.0 + 12 * 0.0001)
    assert cost_s - load_s == pytest.approx(2.25 + (10 + 2 * 0.1) * (0.2 * 1.0 + 0.08 * 2.0), abs=1e-5)


def test_what_is_computed_where_others_wait_costs_them_too() -> None:
    """1,000 tokens in 1 s, one and a quarter times for those behind it, and one and a half for each of six that are delayed."""
    assert LoadEstimate(0, 0, 0.0, 1000).costs_s(1000, 0, PodQueue(), 6)[0] == pytest.approx(11.25)


@pytest.mark.parametrize(("busy", "cost_s"), [(0.0, 2.25), (0.25, 4.25), (1.0, 10.25), (2.0, 18.25), (50.0, 18.25)])
def test_a_pod_that_computes_prompts_all_the_time_has_none_to_spare(busy: float, cost_s: float) -> None:
    """1,000 tokens in 1 s count two and a quarter times, and eight times more where others came all the time."""
    assert LoadEstimate(0, 0, 0.0, 1000).costs_s(1000, 0, PodQueue(busy=busy), 0)[0] == pytest.approx(cost_s)


@pytest.mark.parametrize(("renewed", "cost_s"), [(0.0, 2.25), (0.1, 2.75), (1.0, 7.25), (2.0, 12.25), (50.0, 12.25)])
def test_where_the_cache_is_renewed_often_more_is_computed_again(renewed: float, cost_s: float) -> None:
    """1,000 tokens in 1 s count two and a quarter times, and five times more where all of the cache is of the last minute."""
    assert LoadEstimate(0, 0, 0.0, 1000).costs_s(1000, 0, PodQueue(renewed=renewed), 0)[0] == pytest.approx(cost_s)


@pytest.mark.parametrize(("running", "own", "spread_s"), [(0, 0, 0.0), (1, 1, 2 / 6), (1, -3, 0.0), (12, 0, 0.75), (500, 0, 0.75)])
def test_a_pod_that_runs_more_than_others_costs_more_up_to_a_limit(running: int, own: int, spread_s: float) -> None:
    cost_s, load_s = LoadEstimate(0, running, 0.0, 1000, running_mean=2.0).costs_s(0, 0, PodQueue(new_count=own), 0)
    assert cost_s - load_s == pytest.approx(spread_s)


def test_where_no_engine_says_what_runs_a_burst_stays_together() -> None:
    (estimate,) = estimate_loads([None], 8000.0)
    assert estimate.costs_s(8, 0, PodQueue(pending=500, new_count=500), 0)[0] == pytest.approx(2.25 * 8 / 8000 + 500 * 0.0001)


def test_room_is_told_or_taken_from_others() -> None:
    loads = [Load(0, 0, 0.0, 100.0, 50.0, 1000.0), Load(0, 0, 0.0, 100.0, 50.0, 3000.0), Load(0, 0, 0.0, 100.0, 50.0), None]
    assert [estimate.kv_tokens for estimate in estimate_loads(loads, 8000.0)] == [1000.0, 3000.0, 2000.0, 2000.0]


@pytest.mark.parametrize("tokens", [0.0, -1.0, math.nan, math.inf, 1e300])
def test_a_room_that_is_none_is_not_told(tokens: float) -> None:
    assert estimate_loads([Load(0, 0, 0.1, 10.0, 500.0, tokens)], 8000.0)[0].kv_tokens == math.inf


def test_what_one_does_not_tell_is_what_the_others_tell_on_average() -> None:
    loads = [Load(2, 3, 0.2, 100.0, 5000.0), Load(4, 1, 0.6, 300.0, 1000.0), Load(6, 10), None]
    assert estimate_loads(loads, 8000.0) == [
        LoadEstimate(300.0, 2, 0.2, 5000.0, waiting=3, running_mean=4.0),
        LoadEstimate(300.0, 4, 0.6, 1000.0, waiting=1, running_mean=4.0),
        LoadEstimate(10 * 200.0, 6, 0.4, 3000.0, waiting=10, running_mean=4.0),
        LoadEstimate((300 + 300 + 2000) / 3, 4.0, 0.4, 3000.0, waiting=14 / 3, running_mean=4.0),
    ]


def test_where_nobody_tells_all_are_alike() -> None:
    assert estimate_loads([None, None], 8000.0) == [LoadEstimate(0.0, 0.0, 0.0, 8000.0)] * 2
    known, unknown = estimate_loads([Load(1, 2), None], 8000.0)
    assert known == LoadEstimate(2 * 1024, 1, 0.0, 8000.0, waiting=2, running_mean=1.0)
    assert unknown == known
    assert estimate_loads([], 8000.0) == []


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf, 1e300])
def test_a_rate_that_is_none_is_not_told(rate: float) -> None:
    assert estimate_loads([Load(0, 0, 0.1, 10.0, rate), Load(0, 0, 0.1, 10.0, 500.0)], 8000.0)[0].rate == 500.0


@pytest.mark.parametrize("usage", [-0.1, 1.1, math.nan, math.inf])
def test_a_usage_that_is_none_is_not_told(usage: float) -> None:
    assert estimate_loads([Load(0, 0, usage, 10.0, 1.0), Load(0, 0, 0.5, 10.0, 1.0)], 8000.0)[0].kv_usage == 0.5


figures = st.none() | st.floats()
loads = st.none() | st.builds(Load, st.integers(-5, 10**9), st.integers(-5, 10**9), figures, figures, figures, figures)


@given(st.lists(loads, max_size=6), st.floats(1.0, 1e6))
def test_whatever_is_told_every_pod_has_a_load_that_is_neither_negative_nor_infinite(told: list[Load | None], rate: float) -> None:
    filled = estimate_loads(told, rate)
    assert len(filled) == len(told)
    for estimate in filled:
        cost_s, load_s = estimate.costs_s(100, None, PodQueue(), 0)
        assert 0 <= load_s <= cost_s < math.inf
        assert 0 < estimate.rate < math.inf


@given(st.lists(loads.filter(lambda load: load is not None), min_size=1, max_size=6), st.floats(1.0, 1e6))
def test_an_unknown_load_lies_between_the_least_and_the_greatest_known(told: list[Load], rate: float) -> None:
    *known, unknown = estimate_loads([*told, None], rate)
    assert min(estimate.running for estimate in known) <= unknown.running * 1.000001 + 1e-9
    assert unknown.running <= max(estimate.running for estimate in known) * 1.000001
    assert min(estimate.waiting_tokens for estimate in known) <= unknown.waiting_tokens * 1.000001 + 1e-9
    assert unknown.waiting_tokens <= max(estimate.waiting_tokens for estimate in known) * 1.000001
