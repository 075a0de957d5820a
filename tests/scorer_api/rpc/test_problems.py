"""Which status code stands for which refusal."""

import pytest

from indexer.http.problems import Problem
from scorer_api.rpc.problems import refusal_of
from tests.scorer_stub import messages

OF_STATUS = {
    **{400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 413: "RESOURCE_EXHAUSTED", 422: "INVALID_ARGUMENT"},
    **{429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE"},
}


@pytest.mark.parametrize(("status", "code"), OF_STATUS.items())
def test_each_status_has_a_code(status: int, code: str) -> None:
    refusal = refusal_of(Problem(status, "why"))
    assert (refusal.code, refusal.message) == (code, "why")
    assert messages.Problem(type="about:blank", status=status, detail="why").SerializeToString()[:13] in refusal.details
