"""The figures of runs."""

import pytest

from scorer_api.fleet.request import Request
from scorer_api.fleet.results import RunResult, merged, result_of


@pytest.mark.parametrize(("until_s", "tokens_per_s"), [(30.0, 400 / 22), (10.0, (100 + 300 / 3) / 10)])
def test_answers_count_until_users_stop_asking(until_s: float, tokens_per_s: float) -> None:
    """The second answer, of 300 tokens, is generated from 4 s to 22 s: by 10 s a third of it."""
    requests = [Request(0, 0.0, ((1, 64),), (2, 100), 0), Request(1, 2.0, ((1, 64),), (3, 300), 1)]
    requests[0].first_token_s, requests[0].done_s = 1.0, 5.0
    requests[1].first_token_s, requests[1].done_s = 4.0, 22.0
    assert result_of(requests, 1, until_s).tokens_per_s == pytest.approx(tokens_per_s)


def test_several_runs_as_one() -> None:
    one = RunResult([0.1, 0.5], 100.0, 0.5, 0.0, 1.0, 2, 10.0, [1, 1], [1, 0])
    other = RunResult([0.2, 0.3, 0.4], 200.0, 0.25, 0.5, 2.0, 0, 20.0, [3, 0], [2, 0])
    both = merged([one, other])
    assert both == RunResult([0.1, 0.2, 0.3, 0.4, 0.5], 150.0, 0.375, 0.25, 1.5, 2, 15.0, [4, 1], [3, 0])
    assert (both.ttft_mean_s, both.ttft_at_s(0.9)) == (0.3, 0.5)
