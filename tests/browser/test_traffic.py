"""What the service is asked: hit share, picks, hot prefixes, and a chat that is tried out. And the order of a long list of pods."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.browser.chromium import NARROW, Browser
from tests.browser.test_pods import rows
from tests.engine import Engine, stored
from tests.processes import serve
from tests.running import Command
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

SYSTEM = list(range(1, 9))
PODS = 600


@pytest.fixture
def service() -> Iterator[Command]:
    with Engine() as one, Engine() as other, serve(None, one.spec("a"), other.spec("b"), hot_prefixes="100") as service:
        one.publish(stored([1, 2, 3], [*SYSTEM, 9, 9, 9, 9]))
        other.publish(stored([1, 2], SYSTEM))
        for pod in "ab":
            service.wait_url().wait_for(pod=pod, sequence=0)
        yield service


def route(service: Command, *more: int) -> None:
    assert service.http.post(f"{service.url}/v1/route", json={"model": "m", "token_ids": [*SYSTEM, *more]}).status_code == 200


def test_hit_share_trust_and_picks_are_those_of_the_metrics(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#history .legend", "hit share not known", "live streams 100%")
    assert browser.text("#picks") == "Nothing was picked yet"
    service.score([*SYSTEM, 7, 7, 7, 7, 7, 7, 7, 7])  # 8 of 16 tokens are held
    browser.wait_for("#history .legend", "hit share 50%")
    route(service, 9, 9, 9, 9, 9)
    browser.wait_for("#picks", "Picks, by what they were picked for: longest match 1")
    assert len(browser.js("return [...document.querySelectorAll('#history polyline')].map(e => e.className.baseVal)")) >= 2
    assert browser.names("#history svg")[0].startswith("hit share 50%, live streams 100%; over")


def test_hot_prefixes_stand_below_what_they_continue(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#hot-none", "None yet")
    for tail in ([9, 9, 9, 9, 1], [7, 7, 7, 7, 1], [1]):
        service.score([*SYSTEM, *tail])
    browser.wait_for("#prefixes", "3 asked, 100%")
    assert not browser.is_shown("#hot-none")
    assert len(browser.texts("#prefixes > li")) == 1
    assert len(browser.texts("#prefixes > li > ol > li")) == 2
    told = {prefix["prefix"]: prefix for prefix in service.http.get(f"{service.url}/v1/hot").json()["prefixes"]}
    assert set(browser.texts("#prefixes code")) == set(told)
    held = [text for text in browser.texts("#prefixes p") if text]
    assert held[0] == "Tokens held by: a all, b all"
    assert set(held[1:]) == {"Tokens held by: a all, b 8", "Tokens held by: a 8, b 8"}
    assert browser.names("#prefixes > li > svg") == ["100% of the prompts"]
    browser.screenshot("hot-prefixes")
    browser.resize(*NARROW)
    assert browser.overflow() == 0


def test_where_nothing_is_counted_nothing_is_asked_for(browser: Browser) -> None:
    with Engine() as engine, serve(None, engine.spec("a")) as service:
        browser.open(f"{service.wait_url().url}/ui")
        browser.wait_for("#summary", "1 pod")
        service.score([1, 2, 3])
        browser.wait_for("#hot-none", "--hot-prefixes")
        assert not any("v1/hot" in request.url for request in browser.requests())


def test_the_pod_that_a_prompt_would_go_to_is_told_and_counts_no_request(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "2 pods")
    browser.click("[value=token_ids]")
    browser.paste("#given", " ".join(map(str, [*SYSTEM, 9, 9, 9, 9, 9])))
    browser.click("#pick")
    browser.wait_for("#said", "It would go to a, for longest match: 12 of 13 tokens are in its cache. The next ones: b.")
    assert service.metric("kv_indexer_route_open") == 0
    browser.write("#given", "1 x")
    browser.click("#pick")
    browser.wait_for("#ask-error", 'Token 1 is "x"')


def test_a_chat_is_written_as_its_turns(browser: Browser) -> None:
    with Command("demo", "--port", "0") as demo:
        browser.open(f"{demo.wait_url().url}/ui")
        browser.wait_for("#summary", "2 pods")
        browser.click("[value=chat]")
        browser.paste("#given", "system: 1 2\n3 4\nuser: 5\n\nassistant: 6")
        browser.click("#ask .main")
        browser.wait_for("#facts", "tokens from messages")
        (asked,) = [json.loads(request.body or "") for request in browser.requests() if request.url.endswith("/v1/explain")]
        turns = [("system", "1 2\n3 4"), ("user", "5"), ("assistant", "6")]
        assert asked["messages"] == [{"role": role, "content": content} for role, content in turns]
        browser.write("#given", "Hello")
        browser.click("#ask .main")
        browser.wait_for("#ask-error", "The first line should begin with system:, user: or assistant:")


@pytest.fixture(scope="module")
def many() -> Iterator[Command]:
    """More pods than the page has rows for at first; most of one engine, whose number of blocks tells them apart."""
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine()) for _ in range(3)]
        specs = [engines[number % 3].spec(f"pod-{number}") for number in range(PODS)]
        service = stack.enter_context(serve(None, *specs))
        for number, engine in enumerate(engines):
            engine.publish(stored(range(1, 10 * number + 2), range(4 * (10 * number + 1))))
        service.wait_url()
        wait_until(lambda: sum(pod["streams"][0]["sequence"] == 0 for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]) == PODS, 60)
        yield service


def test_pods_can_be_put_in_order(browser: Browser, many: Command) -> None:
    browser.open(f"{many.url}/ui")
    browser.wait_for("#shown", f"{PODS} streams")
    browser.choose("#sort", "Pod")
    wait_until(lambda: [row["Pod"] for row in rows(browser)[:3]] == ["pod-0", "pod-1", "pod-2"])
    browser.click("#backwards")
    wait_until(lambda: [row["Pod"] for row in rows(browser)[:3]] == ["pod-599", "pod-598", "pod-597"])
    browser.choose("#sort", "Blocks")
    wait_until(lambda: {row["Blocks"] for row in rows(browser)[:200]} == {"gpu 21"})
    assert browser.js("return [...document.querySelectorAll('[aria-sort]')].map(e => [e.textContent, e.ariaSort])") == [["Blocks", "descending"]]
    browser.click("#backwards")
    wait_until(lambda: {row["Blocks"] for row in rows(browser)[:200]} == {"gpu 1"})
    browser.choose("#sort", "")
    wait_until(lambda: browser.js("return document.querySelector('[aria-sort]')") is None)


def test_a_long_list_comes_as_it_is_scrolled(browser: Browser, many: Command) -> None:
    browser.open(f"{many.url}/ui")
    browser.wait_for("#shown", f"{PODS} streams")
    wait_until(lambda: len(rows(browser)) == 250)
    assert browser.js("return document.getElementById('table').getAttribute('aria-rowcount')") == str(PODS + 1)
    browser.js("document.getElementById('list').scrollTop = 1e6")
    wait_until(lambda: len(rows(browser)) == 500)
    browser.js("document.getElementById('list').scrollTop = 1e6")
    wait_until(lambda: len(rows(browser)) == PODS)
    assert browser.js("return [...document.querySelectorAll('#streams tr')].map(e => +e.ariaRowIndex)") == list(range(2, PODS + 2))
    browser.write("#filter", "pod-59")
    wait_until(lambda: len(rows(browser)) == 11)
    assert browser.js("return document.getElementById('list').scrollTop") == 0
