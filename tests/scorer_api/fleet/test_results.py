"""The figures of runs."""

from scorer_api.fleet.results import RunResult, merged


def test_several_runs_as_one() -> None:
    one = RunResult([0.1, 0.5], 100.0, 0.5, 0.0, 1.0, 2, 10.0, [1, 1], [1, 0])
    other = RunResult([0.2, 0.3, 0.4], 200.0, 0.25, 0.5, 2.0, 0, 20.0, [3, 0], [2, 0])
    both = merged([one, other])
    assert both == RunResult([0.1, 0.2, 0.3, 0.4, 0.5], 150.0, 0.375, 0.25, 1.5, 2, 15.0, [4, 1], [3, 0])
    assert (both.ttft_mean_s, both.ttft_at_s(0.9)) == (0.3, 0.5)
