"""Which status code stands for which refusal."""

from urllib.parse import quote

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


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600"])
def test_a_long_sentence_loses_its_middle_since_clients_take_few_bytes_of_headers(letter: str) -> None:
    """gRPC clients take 8 KiB: the sentence percent-encoded, and twice in the details."""
    refusal = refusal_of(Problem(404, f"model: '{letter * 5_000}' is not known"))
    assert refusal.message.startswith(f"model: '{letter}")
    assert refusal.message.endswith(f"{letter}' is not known")
    assert len(quote(refusal.message)) + len(refusal.details) < 8_192 - 1_024
    assert refusal.message.encode() in refusal.details
    assert refusal_of(Problem(404, letter * 250)).message == letter * 250
