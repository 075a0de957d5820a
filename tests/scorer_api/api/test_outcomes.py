"""Requests that fail are counted by outcome."""

import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.requests import ClientDisconnect

from indexer.http.problems import Problem
from scorer_api.api.outcomes import OUTCOME_OF_STATUS, count_failures

OUTCOMES = (*OUTCOME_OF_STATUS.values(), "disconnected", "failed", "match")


def counted(error: Exception | None) -> dict[str, float]:
    """The counters above 0 after a request that raised this."""
    registry = CollectorRegistry()
    requests = Counter("requests", "By outcome.", ["outcome"], registry=registry)
    counters = {outcome: requests.labels(outcome) for outcome in OUTCOMES}
    if error is None:
        with count_failures(counters):
            pass
    else:
        with pytest.raises(type(error)), count_failures(counters):
            raise error
    counts = {outcome: registry.get_sample_value("requests_total", {"outcome": outcome}) for outcome in OUTCOMES}
    return {outcome: count for outcome, count in counts.items() if count}


@pytest.mark.parametrize(("status", "outcome"), OUTCOME_OF_STATUS.items())
def test_each_problem_has_an_outcome(status: int, outcome: str) -> None:
    assert counted(Problem(status, "why")) == {outcome: 1}


@pytest.mark.parametrize(("error", "outcome"), [(ClientDisconnect(), "disconnected"), (ValueError(), "failed")])
def test_so_has_each_other_failure(error: Exception, outcome: str) -> None:
    assert counted(error) == {outcome: 1}


def test_a_request_that_succeeds_is_counted_by_its_route() -> None:
    assert counted(None) == {}
