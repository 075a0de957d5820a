import asyncio
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from indexer.core.names import Trust
from indexer.http.pods_page import PAGE_PODS_MAX, PIECE_BYTES, PodsPage, encoded_pods
from indexer.http.problems import Problem
from indexer.http.schemas import PodsAnswer
from indexer.http.turns import STEP_S
from indexer.streams.pool import PodStatus
from indexer.streams.status import StreamStatus
from tests.running import Running

NAMES = ["b", "a", "c/1", "d"]


def pod(number: int) -> PodStatus:
    stream = StreamStatus(0, 1, Trust.LIVE, True, 16, {"gpu": number}, 1, 0, 0, 0, 0.1, None)
    return PodStatus(f"pod-{number}", "m", [stream])


@pytest.mark.parametrize(
    ("query", "names", "following"),
    [
        ({}, NAMES, None),
        ({"lora": "x"}, NAMES, None),
        ({"limit": "2"}, ["a", "b"], "b"),
        ({"limit": "2", "after": "b"}, ["c/1", "d"], None),
        ({"limit": "3", "after": "a"}, ["b", "c/1", "d"], None),
        ({"after": "bb"}, ["c/1", "d"], None),
        ({"after": ""}, ["a", "b", "c/1", "d"], None),
        ({"after": "z"}, [], None),
        ({"limit": str(PAGE_PODS_MAX)}, ["a", "b", "c/1", "d"], None),
    ],
)
def test_a_page_is_of_those_behind_a_name(query: dict[str, str], names: list[str], following: str | None) -> None:
    assert PodsPage.of(NAMES, query) == PodsPage(names, following)


@pytest.mark.parametrize("limit", ["", "0", "-1", "1.5", "+1", "x", "٣", str(PAGE_PODS_MAX + 1), "9" * 5_000])
def test_a_wrong_limit_is_a_problem(limit: str) -> None:
    with pytest.raises(Problem, match="limit") as caught:
        PodsPage.of(NAMES, {"limit": limit})
    assert caught.value.status == 422


@pytest.mark.parametrize("count", [0, 1, 2, 2_000])
@pytest.mark.parametrize("following", [None, 'q"uote'])
def test_the_pieces_together_are_an_answer(count: int, following: str | None) -> None:
    pieces = asyncio.run(all_of(iter(pod(number) for number in range(count)), following))
    assert all(len(piece) < PIECE_BYTES + 1_024 for piece in pieces)
    answer = msgspec.json.decode(b"".join(pieces), type=PodsAnswer)
    assert answer == PodsAnswer([pod(number) for number in range(count)], following or msgspec.UNSET)


async def all_of(pods: Iterator[PodStatus], following: str | None) -> list[bytes]:
    return [piece async for piece in encoded_pods(pods, following)]


async def test_others_have_their_turn_while_many_pods_are_written() -> None:
    def slowly() -> Iterator[PodStatus]:
        for number in range(10):
            time.sleep(STEP_S)
            yield pod(number)

    writing = asyncio.create_task(all_of(slowly(), None))
    turns = 0
    while not writing.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 10


def test_pages_of_a_service_together_are_all_its_pods() -> None:
    specs = [f"pod=p{number},model=m,events=tcp://127.0.0.1:9" for number in (3, 1, 4, 2, 0)]
    with Running(*specs) as service:
        every = names_of(ask(service))
        assert every == ["p3", "p1", "p4", "p2", "p0"]
        pages = [ask(service, limit="2")]
        while (following := pages[-1].get("next")) is not None:
            pages.append(ask(service, limit="2", after=following))
        assert [names_of(page) for page in pages] == [["p0", "p1"], ["p2", "p3"], ["p4"]]
        assert service.http.get(f"{service.url}/v1/pods", params={"limit": "0"}).status_code == 422


def ask(service: Running, **query: str) -> dict[str, Any]:
    answer: dict[str, Any] = service.http.get(f"{service.url}/v1/pods", params=query).raise_for_status().json()
    return answer


def names_of(answer: dict[str, Any]) -> list[str]:
    return [pod["pod"] for pod in answer["pods"]]
