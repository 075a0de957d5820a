"""Outcomes of requests, as metrics count them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import Counter
from starlette.requests import ClientDisconnect

from indexer.http.problems import Problem

OUTCOME_OF_STATUS = {
    400: "malformed",
    404: "unknown_model",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_type",
    422: "wrong_value",
    429: "no_room",
    501: "no_engine_hashes",
    502: "no_tokens",
    503: "no_pod",
}


@contextmanager
def count_failures(requests: Mapping[str, Counter]) -> Iterator[None]:
    """Count a request that fails by its outcome. `requests`: outcome → counter. Who answers a request counts it as answered."""
    try:
        yield
    except Problem as problem:
        requests[OUTCOME_OF_STATUS[problem.status]].inc()
        raise
    except ClientDisconnect:
        requests["disconnected"].inc()
        raise
    except Exception:
        requests["failed"].inc()
        raise
