"""Two cells, each a process that follows half of the engines, a scorer in front of them, and one that follows all engines to compare with."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import msgspec
import pytest

from tests import command
from tests.engine import BLOCK_SIZE, Engine, stored
from tests.engine_server import EngineServer
from tests.processes import serve
from tests.running import Client, Command, Running
from tests.settings import words_of
from tests.waiting import wait_until

PODS = ("a", "b", "c", "d")
# How many blocks of the prompt each pod holds.
HELD = {"a": 3, "b": 9, "c": 6, "d": 0}
PROMPT = list(range(1, 10 * BLOCK_SIZE + 1))
# For tests in which no cell is late.
PATIENT = {"cell_timeout_s": "30"}


class Cells:
    """`front` answers for `cells`; `whole` follows all engines by itself."""

    def __init__(self, stack: ExitStack) -> None:
        self.engines = {pod: stack.enter_context(Engine()) for pod in PODS}
        specs = [engine.spec(pod, "m") for pod, engine in self.engines.items()]
        for pod, engine in self.engines.items():
            tokens = PROMPT[: max(1, HELD[pod]) * BLOCK_SIZE] if HELD[pod] else [7] * BLOCK_SIZE
            engine.publish(stored(range(1, max(1, HELD[pod]) + 1), tokens))
        self.cells: list[Command] = [stack.enter_context(serve(None, *each, load_interval_s="0")) for each in (specs[:2], specs[2:])]
        for cell in self.cells:
            cell.wait_url()
        self.whole = stack.enter_context(Running(*specs, load_interval_s="0"))
        self.urls = [cell.url for cell in self.cells]
        self.front = stack.enter_context(front_of(*self.urls)).wait_url()
        for pod in PODS:
            for service in (self.whole, self.cells[PODS.index(pod) // 2]):
                service.wait_for(pod=pod, trust="live", sequence=0)

    def asked(self, path: str, **body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the front answers, and what the other one does."""
        whole, front = (ask(service, path, {"model": "m", "token_ids": PROMPT, **body}) for service in (self.whole, self.front))
        return front, whole

    def states(self) -> list[str]:
        return [cell["state"] for cell in self.asked("/v1/score")[0]["cells"]]


def front_of(*urls: str, **settings: str) -> Command:
    return Command("api", *words_of({"port": "0", **PATIENT, **settings}), *(word for url in urls for word in ("--cells", url)))


def ask(service: Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = service.http.post(f"{service.url}{path}", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def ask_until_answered(front: Command, path: str, url: str) -> dict[str, Any]:
    """The first answer in which this cell's part is: on a busy machine any cell may be late."""

    def asked() -> dict[str, Any] | None:
        response = front.http.post(f"{front.url}{path}", json={"model": "m", "token_ids": PROMPT})
        if response.status_code == 503:
            return None
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer if [cell["state"] for cell in answer["cells"] if cell["cell"] == url] == ["answered"] else None

    found = wait_until(asked, 20, f"{url} to answer in time")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def running() -> Iterator[Cells]:
    with ExitStack() as stack:
        yield Cells(stack)


@pytest.fixture
def cells(running: Cells) -> Cells:
    wait_until(lambda: running.states() == ["answered", "answered"], 20, "both cells to be asked")
    return running


@pytest.mark.parametrize("more", [{}, {"limit": 2}, {"pods": ["a", "c", "nobody"]}, {"include_speculative": True}])
def test_scores_are_those_of_one_scorer_over_all_pods(cells: Cells, more: dict[str, Any]) -> None:
    front, whole = cells.asked("/v1/score", **more)
    assert [pod["pod"] for pod in front["pods"]][:2] == (["c", "a"] if "pods" in more else ["b", "c"])
    assert {name: front[name] for name in whole if name != "view"} == {name: whole[name] for name in whole if name != "view"}
    assert front["view"]["source"] == "cells"
    assert [cell["cell"] for cell in front["cells"]] == cells.urls


@pytest.mark.parametrize("policy", ["cost", "prefix", "least-load", "session"])
def test_picks_are_those_of_one_scorer_over_all_pods(cells: Cells, policy: str) -> None:
    front, whole = cells.asked("/v1/route", policy=policy, session_id="s")
    assert (front["picked_for"], front["policy"], front["tokens"]) == (whole["picked_for"], policy, whole["tokens"])
    if policy != "least-load":  # idle pods are equal then, and chance decides
        assert (front["pod"], front["rank"]) == (whole["pod"], whole["rank"])
    if policy == "session":
        assert front["fallbacks"] == whole["fallbacks"]
    assert {front["pod"], *front["fallbacks"]} == set(PODS) == front["reason"].keys() == front["http"].keys()
    for name in ("matched_tokens", "uncached_tokens"):
        assert {pod: each[name] for pod, each in front["reason"].items()} == {pod: each[name] for pod, each in whole["reason"].items()}
    # What was sent to a pod a moment ago makes it dearer, and chance sent some of that.
    whole_s = {pod: each["cost_s"] for pod, each in whole["reason"].items()}
    assert {pod: each["cost_s"] for pod, each in front["reason"].items()} == pytest.approx(whole_s, rel=0.02)
    for service, answer in ((cells.front, front), (cells.whole, whole)):
        assert ask(service, "/v1/route/done", {"id": answer["id"]}) == {"id": answer["id"], "known": True}
        assert ask(service, "/v1/route/done", {"id": answer["id"]})["known"] is False


def test_a_routed_request_counts_at_the_cell_of_its_pod_and_nowhere_else(cells: Cells) -> None:
    before = [cell.metric("kv_indexer_route_open") for cell in cells.cells]
    front, _ = cells.asked("/v1/route", policy="prefix", limit=1)
    assert (front["pod"], front["fallbacks"], list(front["reason"])) == ("b", [], ["b"])
    assert [cell.metric("kv_indexer_route_open") for cell in cells.cells] == [before[0] + 1, before[1]]
    again, _ = cells.asked("/v1/route", policy="prefix")
    assert again["reason"]["b"]["queued_tokens"] > 0
    for answer in (front, again):
        ask(cells.front, "/v1/route/done", {"id": answer["id"]})


def test_turns_go_over_the_pods_of_all_cells(cells: Cells) -> None:
    picked = [cells.asked("/v1/route", policy="round-robin")[0] for _ in PODS]
    assert {answer["pod"] for answer in picked} == set(PODS)
    for answer in picked:
        ask(cells.front, "/v1/route/done", {"id": answer["id"]})


def test_models_are_those_of_all_cells(cells: Cells) -> None:
    assert cells.front.http.get(f"{cells.front.url}/v1/models").json() == {"models": [{"model": "m", "pods": list(PODS)}]}


def test_msgpack_goes_through(cells: Cells) -> None:
    body = msgspec.msgpack.encode({"model": "m", "token_ids": PROMPT, "limit": 1})
    routed = msgspec.msgpack.encode({"model": "m", "token_ids": PROMPT, "limit": 1, "policy": "prefix"})
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    for path, content, name in (("/v1/score", body, "best"), ("/v1/route", routed, "pod")):
        response = cells.front.http.post(f"{cells.front.url}{path}", content=content, headers=headers)
        assert msgspec.msgpack.decode(response.content)[name] == "b"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "m"}, 422, "token_ids"),
        ({"model": "m", "token_ids": [-1]}, 422, "token_ids"),
        ({"model": "nobody's", "token_ids": [1]}, 404, "nobody's"),
        ({"model": "m", "token_ids": [1], "policy": "best"}, 422, "policy"),
        ({"model": "m", "token_ids": [1], "policy": "session"}, 422, "session_id"),
    ],
)
def test_a_mistake_in_a_request_is_told_as_one_scorer_tells_it(cells: Cells, body: dict[str, Any], status: int, says: str) -> None:
    front, whole = (service.http.post(f"{service.url}/v1/route", json=body) for service in (cells.front, cells.whole))
    assert (front.status_code, front.json()) == (whole.status_code, whole.json())
    assert front.status_code == status
    assert says in front.json()["detail"]


def test_an_id_of_nobody_is_not_known(cells: Cells) -> None:
    for identifier in ("", "0123456789abcdef", "00000000-0123456789abcdef", "-"):
        assert ask(cells.front, "/v1/route/done", {"id": identifier}) == {"id": identifier, "known": False}


def ask_for_nobody(cells: Cells) -> bytes:
    """What a scorer says of a model that it does not know."""
    answer = httpx.post(f"{cells.urls[0]}/v1/score", json={"model": "nobody", "token_ids": [1]})
    assert answer.status_code == 404
    return answer.content


def test_a_cell_that_answers_nonsense_costs_its_part_only(cells: Cells) -> None:
    """What says that the request is wrong is told, whatever it looks like."""
    reply: list[tuple[int, bytes]] = [(200, b"{}")]
    routes = {"/readyz": lambda _: (200, b"{}"), "/v1/score": lambda _: reply[0], "/v1/candidates": lambda _: reply[0]}
    with EngineServer(routes=routes) as odd, front_of(cells.urls[0], odd.url) as front:
        front.wait_url()
        no_route, no_model = b'{"type":"t","title":"t","status":404,"detail":"Not Found"}', ask_for_nobody(cells)
        nonsense = [
            (200, b"\x93\x01"),
            (200, b"{}"),
            (200, b"\x81\xa5model\x01"),
            (500, b"oops"),
            (302, b""),
            (429, b""),
            (404, b"?"),
            (404, no_route),
        ]
        for reply[0] in [*nonsense, (404, no_model)]:
            for path in ("/v1/score", "/v1/route"):
                answer = ask(front, path, {"model": "m", "token_ids": PROMPT})
                states = [cell["state"] for cell in answer["cells"]]
                assert states == ["answered", "unknown_model" if reply[0][1] == no_model else "failed"]
        reply[0] = 422, b"no problem at all"
        for path in ("/v1/score", "/v1/route"):
            response = front.http.post(f"{front.url}{path}", json={"model": "m", "token_ids": PROMPT})
            assert (response.status_code, response.json()["detail"]) == (422, "a cell refuses the request, and does not say why")


def test_a_cell_that_does_not_count_a_pick_loses_it_to_the_others(cells: Cells) -> None:
    """It said that its pod "b" holds most of the prompt."""
    body = msgspec.json.encode({"model": "m", "token_ids": PROMPT})
    told = httpx.post(f"{cells.urls[0]}/v1/candidates", content=body, headers={"Content-Type": "application/json", "Accept": "application/msgpack"})
    routes = {"/readyz": lambda _: (200, b"{}"), "/v1/candidates": lambda _: (200, told.content), "/v1/route": lambda _: (500, b"")}
    with EngineServer(routes=routes) as odd, front_of(odd.url, cells.urls[1]) as front:
        front.wait_url()
        answer = ask(front, "/v1/route", {"model": "m", "token_ids": PROMPT, "policy": "prefix"})
        assert (answer["pod"], answer["reason"].keys(), answer["http"].keys()) == ("c", {"c", "d"}, {"c", "d"})
        assert [(cell["state"], "age_s" in cell and cell["age_s"] is not None) for cell in answer["cells"]] == [("failed", False), ("answered", True)]
        ask(front, "/v1/route/done", {"id": answer["id"]})


def test_a_pod_that_cannot_be_picked_any_more_costs_the_others_of_its_cell_nothing(cells: Cells) -> None:
    """The cell said of two that they can be, and the first one is gone when it is picked."""
    body = msgspec.json.encode({"model": "m", "token_ids": PROMPT})
    told = httpx.post(f"{cells.urls[0]}/v1/candidates", content=body, headers={"Content-Type": "application/json", "Accept": "application/msgpack"})
    asked: list[list[str]] = []

    def routed(request: dict[str, Any]) -> tuple[int, bytes]:
        asked.append(request["pods"])
        if len(asked) == 1:
            return 503, b"{}"
        answer = httpx.post(f"{cells.urls[0]}/v1/route", json=request, headers={"Accept": "application/msgpack"})
        return answer.status_code, answer.content

    routes = {"/readyz": lambda _: (200, b"{}"), "/v1/candidates": lambda _: (200, told.content), "/v1/route": routed}
    with EngineServer(routes=routes) as odd, front_of(odd.url) as front:
        front.wait_url()
        answer = ask(front, "/v1/route", {"model": "m", "token_ids": PROMPT, "policy": "prefix"})
        assert sorted(asked) == [["a"], ["b"]]
        assert (answer["pod"], answer["fallbacks"]) == (asked[1][0], [])
        assert [cell["state"] for cell in answer["cells"]] == ["answered"]


def test_what_no_cell_can_be_sent_is_left_out_of_its_requests(cells: Cells) -> None:
    """Who sends such a header keeps nobody's requests from the cells."""
    for value in (b"\xff", "é".encode()):
        sent = {"traceparent": value, "tracestate": value, "Content-Type": "application/json"}
        for path in ("/v1/score", "/v1/route"):
            body = msgspec.json.encode({"model": "m", "token_ids": PROMPT})
            response = cells.front.http.post(f"{cells.front.url}{path}", content=body, headers=sent)
            assert [cell["state"] for cell in response.json()["cells"]] == ["answered", "answered"]


def test_a_cell_that_hangs_is_not_waited_for(cells: Cells) -> None:
    """It is late at first, and then it is not asked; the others' pods are in the answer."""
    with front_of(*cells.urls, cell_timeout_s="0.5") as front:
        front.wait_url()

        def states() -> list[str]:
            return [cell["state"] for cell in ask_until_answered(front, "/v1/score", cells.urls[0])["cells"]]

        wait_until(lambda: states() == ["answered", "answered"], 20, "both cells to be asked")
        cells.cells[1].freeze()
        try:
            for _ in range(4):
                answer = ask_until_answered(front, "/v1/score", cells.urls[0])
                assert answer["cells"][1]["state"] in ("late", "down")
                assert [pod["pod"] for pod in answer["pods"]] == ["b", "a"]
            wait_until(lambda: states()[1] == "down", 20)
            assert front.metric("kv_indexer_cell_up", cell=cells.urls[1]) == 0
            assert ask_until_answered(front, "/v1/route", cells.urls[0])["pod"] in ("a", "b")
        finally:
            cells.cells[1].thaw()
        wait_until(lambda: states() == ["answered", "answered"], 20, "it to be asked again")
        assert front.metric("kv_indexer_cell_up", cell=cells.urls[1]) == 1


def test_a_cell_that_dies_is_missing_in_answers_and_named(cells: Cells) -> None:
    """Last: nothing starts it again."""
    cells.cells[0].kill()
    wait_until(lambda: cells.states()[0] == "down", 20)
    front = ask(cells.front, "/v1/score", {"model": "m", "token_ids": PROMPT})
    assert (front["best"], [pod["pod"] for pod in front["pods"]]) == ("c", ["c", "d"])
    routed = ask(cells.front, "/v1/route", {"model": "m", "token_ids": PROMPT, "policy": "prefix"})
    assert (routed["pod"], [cell["state"] for cell in routed["cells"]]) == ("c", ["down", "answered"])
    ready = cells.front.http.get(f"{cells.front.url}/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert cells.urls[0] in ready.json()["reasons"][0]
    assert cells.front.metric("kv_indexer_cell_answers_total", cell=cells.urls[0], state="down") > 0
    unknown = cells.front.http.post(f"{cells.front.url}/v1/score", json={"model": "nobody's", "token_ids": [1]})
    assert unknown.status_code == 503  # the dead one may know it
    assert cells.urls[0] in unknown.json()["detail"]
    cells.cells[1].kill()
    wait_until(lambda: cells.front.http.get(f"{cells.front.url}/readyz").status_code == 503, 20)
    assert cells.front.http.post(f"{cells.front.url}/v1/score", json={"model": "m", "token_ids": [1]}).status_code == 503


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cells", "nowhere"], "--cells='nowhere': should be http://host:port of a scorer"),
        (["--cells", "http://h:1", "--cells", "http://h:1/"], "names a cell twice"),
        (["--cells", "http://h:1", "--redis", "redis://h"], "--redis='redis://h': cannot be given with --cells"),
        (["--cells", "http://h:1", "--workers", "2"], "--workers=2: cannot be given with --cells"),
    ],
)
def test_what_cannot_be_given(words: list[str], says: str) -> None:
    code, _, said = command.run("api", "--port", "0", *words)
    assert code == 2
    assert says in said


def test_serve_takes_no_cells() -> None:
    code, _, said = command.run("serve", "--port", "0", "--cells", "http://h:1")
    assert code == 2
    assert "--cells='http://h:1': is for kv-indexer api only" in said
