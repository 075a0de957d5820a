"""Which token is good for which request."""

from pathlib import Path

import pytest
from fastapi import Request
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.http.access import UNKNOWN, WITHOUT, Access
from indexer.http.problems import Problem
from indexer.metrics import HttpMetrics

API, ADMIN = "a" * 32, "b" * 32


class Given:
    def __init__(self, folder: Path, **tokens: str) -> None:
        paths = {}
        for name, token in tokens.items():
            path = folder / name
            path.write_text(f"{token}\n")
            path.chmod(0o600)
            paths[name] = str(path)
        self._registry = CollectorRegistry()
        self.access = Access(Settings(**paths), HttpMetrics(self._registry))  # type: ignore[arg-type]

    def refusal(self, *authorizations: str) -> str | None:
        return self.access.refusal([(b"authorization", each.encode()) for each in authorizations])

    def denied(self, reason: str) -> float | None:
        return self._registry.get_sample_value("kv_indexer_denied_total", {"reason": reason})


def test_both_kinds_of_token_are_good_for_scores(tmp_path: Path) -> None:
    given = Given(tmp_path, api_token_file=API, admin_token_file=ADMIN)
    assert [given.refusal(f"Bearer {token}") for token in (API, ADMIN)] == [None, None]
    assert given.refusal(f"bearer  {API} ") is None


@pytest.mark.parametrize(
    ("authorizations", "why", "reason"),
    [
        ((), WITHOUT, "no_token"),
        (("Bearer",), WITHOUT, "no_token"),
        ((f"Basic {API}",), WITHOUT, "no_token"),
        ((f"Bearer {API}", f"Bearer {API}"), WITHOUT, "no_token"),
        (("Bearer other",), UNKNOWN, "wrong_token"),
    ],
)
def test_what_is_refused_is_counted(tmp_path: Path, authorizations: tuple[str, ...], why: str, reason: str) -> None:
    given = Given(tmp_path, api_token_file=API)
    assert given.refusal(*authorizations) == why
    assert given.denied(reason) == 1


OWN, THEIRS = (b"x-kv-indexer-token", API.encode()), (b"authorization", b"Bearer of-a-client")


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([OWN], None),
        ([THEIRS, OWN], None),
        ([OWN, THEIRS], None),
        ([(OWN[0], b" " + OWN[1] + b" ")], None),
        ([(OWN[0], b"other"), (b"authorization", b"Bearer " + OWN[1])], UNKNOWN),
        ([(OWN[0], b"Bearer " + OWN[1])], UNKNOWN),
        ([(OWN[0], b""), (b"authorization", b"Bearer " + OWN[1])], WITHOUT),
        ([OWN, OWN], WITHOUT),
        ([THEIRS], UNKNOWN),
    ],
)
def test_a_token_in_our_own_header_counts_and_authorization_is_somebody_elses_then(
    tmp_path: Path, headers: list[tuple[bytes, bytes]], why: str | None
) -> None:
    access = Given(tmp_path, api_token_file=API, admin_token_file=ADMIN).access
    assert access.refusal(headers) == why


def test_an_admin_token_in_our_own_header_is_good_for_changes(tmp_path: Path) -> None:
    access = Given(tmp_path, api_token_file=API, admin_token_file=ADMIN).access

    def change(token: str) -> None:
        access.check_change(Request({"type": "http", "headers": [THEIRS, (OWN[0], token.encode())]}))

    change(ADMIN)
    with pytest.raises(Problem) as refused:
        change(API)
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("tokens", "needs"),
    [
        ({}, (False, False, False)),
        ({"api_token_file": API}, (True, True, False)),
        ({"admin_token_file": ADMIN}, (False, True, True)),
        ({"api_token_file": API, "admin_token_file": ADMIN}, (True, True, True)),
    ],
)
def test_what_needs_a_token(tmp_path: Path, tokens: dict[str, str], needs: tuple[bool, bool, bool]) -> None:
    access = Given(tmp_path, **tokens).access
    assert (access.needs_token, access.changes_need_token, access.has_admin_tokens) == needs
