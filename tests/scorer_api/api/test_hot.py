"""`GET /v1/hot`, `kv-indexer hot` and `Client.hot`: the same, over HTTP."""

from collections.abc import Iterator

import pytest

from scorer_api.cli.hot import as_text
from scorer_api.client import Client, HotAnswer, HotPrefix, ProblemError
from tests.engine import Engine, stored
from tests.running import Running

SYSTEM = list(range(1, 9))


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    """Two pods hold the system prompt, one of them a chat; three chats were scored and routed."""
    with (
        Engine() as first,
        Engine() as second,
        Running(first.spec("a"), second.spec("b"), hot_prefixes="10") as service,
    ):
        first.publish(stored([1, 2, 3], [*SYSTEM, 9, 9, 9, 9]))
        second.publish(stored([1, 2], SYSTEM))
        service.wait_for(pod="a", sequence=0)
        service.wait_for(pod="b", sequence=0)
        service.score([*SYSTEM, 9, 9, 9, 9, 1])
        assert service.http.post(f"{service.url}/v1/route", json={"model": "m", "token_ids": [*SYSTEM, 7, 7, 7, 7, 1]}).status_code == 200
        service.http.post(f"{service.url}/v1/score/batch", json={"requests": [{"model": "m", "token_ids": [*SYSTEM, 1]}]})
        yield service


def test_the_hottest_are_told_with_who_holds_them(service: Running) -> None:
    answer = service.http.get(f"{service.url}/v1/hot").json()
    assert answer["half_life_s"] == 600.0
    told = [(p["model"], p["blocks"], p["tokens"], round(p["requests"]), round(p["share"], 2), p["held"]) for p in answer["prefixes"]]
    assert told[0] == ("m", 2, 8, 3, 1.0, {"a": 8, "b": 8})
    assert sorted(told[1:], key=str) == [("m", 3, 12, 1, 0.33, {"a": 12, "b": 8}), ("m", 3, 12, 1, 0.33, {"a": 8, "b": 8})]
    top, *others = answer["prefixes"]
    assert (top["parent"], {p["parent"] for p in others}) == (None, {top["prefix"]})
    assert all(0 <= p["asked_age_s"] < 60 for p in answer["prefixes"])


def test_no_token_is_told(service: Running) -> None:
    prefixes = service.http.get(f"{service.url}/v1/hot").json()["prefixes"]
    assert {key for prefix in prefixes for key in prefix} == {
        *("model", "prefix", "parent", "blocks", "tokens", "requests", "share", "asked_age_s", "held"),
    }
    assert all(len(prefix["prefix"]) == 16 and int(prefix["prefix"], 16) >= 0 for prefix in prefixes)


def test_it_can_be_less(service: Running) -> None:
    with Client(service.url) as client:
        assert [prefix.blocks for prefix in client.hot(limit=1).prefixes] == [2]
        assert client.hot("another").prefixes == []
        assert len(client.hot("m").prefixes) == 3


@pytest.mark.parametrize("limit", ["0", "201", "-1", "1e1", "", "9" * 5_000])
def test_a_wrong_limit_is_a_problem(service: Running, limit: str) -> None:
    response = service.http.get(f"{service.url}/v1/hot", params={"limit": limit})
    assert (response.status_code, response.json()["detail"]) == (422, "limit: should be a whole number from 1 to 200")


def test_a_service_that_does_not_count_says_how_it_would() -> None:
    with Running() as service, Client(service.url) as client, pytest.raises(ProblemError) as refused:
        client.hot()
    assert (refused.value.status, "--hot-prefixes" in refused.value.detail) == (501, True)


def test_the_table_shows_the_tree() -> None:
    system = HotPrefix("m", "aa", None, 2, 8, 3.0, 1.0, 0.4, {"b": 4, "a": 8})
    chat = HotPrefix("m", "bb", "aa", 3, 12, 1.0, 0.333, 2.0, {})
    other = HotPrefix("m", "cc", None, 9, 36, 2.0, 0.5, 1.0, {"a": 36})
    deeper = HotPrefix("m", "dd", "bb", 4, 16, 0.5, 0.1, 90.0, {})
    assert as_text(HotAnswer(600.0, [system, other, chat, deeper])).splitlines() == [
        "PREFIX  MODEL  BLOCKS  TOKENS  REQUESTS  SHARE  ASKED     HELD BY",
        "aa      m      2       8       3.0       100%   0 s ago   a:8 b:4",
        "  bb    m      3       12      1.0       33%    2 s ago   -",
        "    dd  m      4       16      0.5       10%    90 s ago  -",
        "cc      m      9       36      2.0       50%    1 s ago   a:36",
    ]
