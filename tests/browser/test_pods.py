"""The pods that the page shows are those of /v1/pods, whatever happens to them."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.browser.chromium import NARROW, Browser
from tests.engine import Engine, stored
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer
from tests.running import Client, Command
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

NOTHING = "\N{EN DASH}"
HEBREW = "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}"
SECONDS = {"s": 1, "min": 60}


def rows(browser: Browser) -> list[dict[str, str]]:
    """The table's rows by the names of its columns, as they are read."""
    script = """
        const names = [...document.querySelectorAll('#columns th')].map(e => e.textContent);
        return [...document.querySelectorAll('#streams tr')].filter(e => e.checkVisibility())
            .map(row => Object.fromEntries([...row.cells].map((cell, place) => [names[place], cell.innerText])));
    """
    return list(browser.js(script))


def pods_of(service: Client) -> list[dict[str, Any]]:
    return list(service.http.get(f"{service.url}/v1/pods").json()["pods"])


def expected(pod: dict[str, Any], stream: dict[str, Any]) -> dict[str, str]:
    """A row, but for the age of its last batch."""
    return {
        "Pod": pod["pod"],
        "Model": pod["model"],
        "Name": pod["name"] or NOTHING,
        "Ready": "yes" if pod["ready"] else "no",
        "Aliases": ", ".join(pod["aliases"]) or NOTHING,
        "Rank": str(stream["rank"]),
        "Trust": {"live": "● live", "partial": "◐ partial", "stale": "○ stale", "expired": "✕ expired"}[stream["trust"]],
        "Connected": "yes" if stream["connected"] else "no",
        "Blocks": ", ".join(f"{tier} {stream['blocks'][tier]:,}" for tier in ("gpu", "cpu") if stream["blocks"].get(tier)) or "0",
        "Groups": ", ".join(f"{one['group']} {one['kind']}" + f" of {one['window']} tokens" * bool(one["window"]) for one in stream["groups"])
        or NOTHING,
        "Drops": f"{dropped} block" + "s" * (dropped > 1) if (dropped := stream["drops_last_block"]) else NOTHING,
        "Sequence": NOTHING if stream["sequence"] is None else f"{stream['sequence']:,}",
        "Owner": stream["owner"] or NOTHING,
        "Last error": stream["last_error"] or NOTHING,
    }


def check_shown(browser: Browser, service: Client) -> None:
    """Wait until the table shows what the API says."""

    def differ() -> list[Any]:
        shown = rows(browser)
        pairs = [(pod, stream) for pod in pods_of(service) for stream in pod["streams"]]
        ages = [row.pop("Last batch") for row in shown]
        wrong: list[Any] = [(row, here) for row, pair in zip(shown, pairs, strict=False) if row != (here := expected(*pair))]
        wrong += [
            (age, stream["last_batch_age_s"]) for age, (_, stream) in zip(ages, pairs, strict=False) if not fits(age, stream["last_batch_age_s"])
        ]
        return wrong or ([] if len(shown) == len(pairs) else [len(shown), len(pairs)])

    wait_until(lambda: not differ(), what=lambda: f"the same in page and API: {differ()}")


def fits(shown: str, age_s: float | None) -> bool:
    """Whether this is said of so many seconds, a few of them ago."""
    if age_s is None:
        return shown == "never"
    found = re.fullmatch(r"([\d.]+) (s|min) ago", shown)
    return found is not None and abs(float(found[1]) * SECONDS[found[2]] - age_s) < 10


def drawn_heights(browser: Browser) -> list[float]:
    """Of the newest sample in the chart, the blocks of each tier, as parts of the whole height."""
    script = """
        return [...document.querySelectorAll('#chart polygon')].map(e => {
            const points = e.getAttribute('points').split(' ').map(p => p.split(',').map(Number)), half = points.length / 2;
            return (points[half][1] - points[half - 1][1]) / 100;
        });
    """
    return list(browser.js(script))


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Engine(with_replay=number < 2)) for number in range(3)]


def test_every_stream_is_shown_as_the_api_says(browser: Browser, engines: list[Engine]) -> None:
    """Live and partial ones, one that cannot be reached, one with a lower tier, one of another model."""
    specs = [
        engines[0].spec("a", rank=0),
        engines[1].spec("a", rank=1),
        f"{engines[2].spec('b', model='other/model')},aliases=short|{HEBREW},drops_last_block=2",
        "pod=away,model=m,events=tcp://127.0.0.1:9",
    ]
    with serve(None, *specs) as service:
        service.wait_url().wait_for(pod="b", connected=True)
        for engine in engines:
            engine.publish(stored(range(1, 1501), range(6000)), stored([2001, 2002], range(7000, 7008), medium="CPU"))
        service.wait_for(pod="a", rank=1, sequence=0, trust="live")
        browser.open(f"{service.url}/ui")
        check_shown(browser, service)
        shown = rows(browser)
        assert [(row["Pod"], row["Rank"], row["Trust"]) for row in shown if row["Pod"] in ("a", "away")] == [
            ("a", "0", "● live"),
            ("a", "1", "● live"),
            ("away", "0", "○ stale"),
        ]
        assert shown[0]["Blocks"] == "gpu 1,500, cpu 2"
        assert [(row["Aliases"], row["Drops"]) for row in shown if row["Pod"] == "b"] == [(f"short, {HEBREW}", "2 blocks")]
        assert browser.texts("td[data-name='Aliases'] bdi") == ["short", HEBREW], "each name for itself"

        engines[0].publish(stored(range(3001, 3101), range(10_000, 10_400)))
        engines[1].kill()
        wait_until(lambda: rows(browser)[0]["Blocks"] == "gpu 1,600, cpu 2")
        wait_until(lambda: rows(browser)[1]["Connected"] == "no")
        check_shown(browser, service)
        assert service.http.delete(f"{service.url}/v1/pods/a").status_code == 204
        put = service.http.put(f"{service.url}/v1/pods/0-new", json={"model": "m", "events": "tcp://127.0.0.1:9"})
        assert put.status_code == 201
        wait_until(lambda: {row["Pod"] for row in rows(browser)} == {"0-new", "b", "away"})
        check_shown(browser, service)


def test_numbers_stand_in_line_and_the_narrow_table_is_still_a_table(browser: Browser, engines: list[Engine]) -> None:
    with serve(None, engines[0].spec("a"), engines[1].spec("b")) as service:
        engines[0].publish(stored([1], range(4)))
        service.wait_url().wait_for(pod="a", sequence=0)
        browser.open(f"{service.url}/ui")
        wait_until(lambda: len(rows(browser)) == 2)
        for name in ("Rank", "Blocks", "Last batch", "Sequence"):
            assert browser.style(f"td[data-name='{name}']", "textAlign") == "right"
            assert "tabular-nums" in browser.style(f"td[data-name='{name}']", "fontVariantNumeric")
        for size in ((1600, 900), NARROW):
            browser.resize(*size)
            assert browser.roles("table, #columns, #columns th, #streams tr:first-child, #streams tr:first-child > *") == [
                "table", "row", *["columnheader"] * 15, "row", "rowheader", *["cell"] * 14
            ]  # fmt: skip
        assert set(browser.texts("#streams tr:first-child td")) >= {"0", "yes", "gpu 1"}
        assert browser.js("return getComputedStyle(document.querySelector('#streams td'), '::before').content") == '"Name"', (
            "each value says what it is"
        )


def test_blocks_are_drawn_over_time(browser: Browser, engines: list[Engine]) -> None:
    with serve(None, engines[0].spec("a"), engines[1].spec("b")) as service:
        for engine in engines[:2]:
            engine.publish(stored(range(1, 101), range(400)))
        for pod in "ab":
            service.wait_url().wait_for(pod=pod, sequence=0)
        browser.open(f"{service.url}/ui")
        browser.wait_for("#chart .legend", "gpu 200 blocks")
        assert browser.text("#chart div") == "200 blocks"
        assert drawn_heights(browser) == [1.0]
        engines[0].publish(stored(range(1001, 1051), range(1000, 1200), medium="CPU"))
        browser.wait_for("#chart .legend", "gpu 200 blocks", "cpu 50 blocks")
        assert browser.text("#chart div") == "500 blocks"
        assert drawn_heights(browser) == [0.4, 0.1]
        engines[0].publish({"type": "AllBlocksCleared"})
        browser.wait_for("#chart .legend", "gpu 100 blocks", "cpu 50 blocks")
        assert drawn_heights(browser) == [0.2, 0.1]
        polygon = browser.js("return document.querySelector('#chart polygon').getAttribute('points').split(' ').length")
        assert polygon >= 6, "what was before is still drawn"
        (label,) = browser.names("#chart svg")
        assert label.startswith("gpu 100, cpu 50; ")


def test_a_scorer_that_follows_redis_has_the_page_too(browser: Browser, engines: list[Engine]) -> None:
    with RedisServer() as redis, ingest(redis.url, engines[0].spec("a")) as indexer, api(redis.url) as scorer:
        engines[0].publish(stored([1, 2], range(8)))
        indexer.wait_url()
        scorer.wait_url()
        wait_until(lambda: any(pod["streams"] and pod["streams"][0]["sequence"] == 0 for pod in pods_of(scorer)))
        browser.open(f"{scorer.url}/ui")
        wait_until(lambda: [row["Blocks"] for row in rows(browser)] == ["gpu 2"])
        check_shown(browser, scorer)
        wait_until(lambda: rows(browser)[0]["Owner"] not in (NOTHING, ""))
        browser.paste("#given", "0 1 2 3 4 5 6 7 8")
        browser.click("[value=token_ids]")
        browser.click("#ask .main")
        browser.wait_for("#facts", "9 tokens", "view of redis")
        browser.wait_for("#said", "a is the best: 2 of 2 blocks")


@pytest.fixture(scope="module")
def many() -> Iterator[Command]:
    """200 pods of ten engines."""
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine()) for _ in range(10)]
        specs = [engines[number % 10].spec(f"pool-{number % 10}/pod-{number:03}.inference.svc.cluster.local:8000") for number in range(200)]
        service = stack.enter_context(serve(None, *specs))
        for number, engine in enumerate(engines):
            engine.publish(stored(range(1, 41 - number), range(4 * (40 - number))))
        service.wait_url()
        wait_until(lambda: sum(stream["trust"] == "live" for pod in pods_of(service) for stream in pod["streams"]) == 200, 60)
        yield service


def test_two_hundred_pods_are_all_there_and_can_be_filtered(browser: Browser, many: Command) -> None:
    browser.open(f"{many.url}/ui")
    browser.wait_for("#summary", "200 pods · 200 streams: 200 live · 7,100 blocks")
    check_shown(browser, many)
    assert browser.text("#shown") == "200 streams"
    browser.write("#filter", "POOL-7/")
    wait_until(lambda: len(rows(browser)) == 20)
    assert browser.text("#shown") == "20 of 200 streams"
    browser.write("#filter", "no such thing")
    wait_until(lambda: rows(browser) == [])
    assert browser.text("#shown") == "0 of 200 streams"
    browser.js("document.getElementById('filter').focus()")
    browser.press("ESCAPE")
    wait_until(lambda: len(rows(browser)) == 200, what="all of them, once Escape empties the search")
    assert browser.overflow() == browser.overflow(".scroll") == 0


def test_of_two_hundred_pods_the_best_are_drawn_first(browser: Browser, many: Command) -> None:
    browser.open(f"{many.url}/ui")
    browser.wait_for("#summary", "200 pods")
    browser.click("[value=token_ids]")
    browser.paste("#given", " ".join(map(str, range(161))))
    browser.click("#ask .main")
    browser.wait_for("#said", "40 of 40 blocks of 4 tokens")
    assert len(browser.texts("#matches > li")) == 20
    assert all("pool-0/" in text for text in browser.texts("#matches h3"))
    browser.screenshot("many-pods")
    assert browser.text("#more") == "Show the other 180 pods"
    browser.js("document.getElementById('more').focus()")
    browser.press("ENTER")
    wait_until(lambda: len(browser.texts("#matches > li")) == 200)
    assert not browser.is_shown("#more")
    place = browser.js("return [...document.querySelectorAll('#matches > li')].findIndex(e => e.contains(document.activeElement))")
    assert place == 20, "the focus goes on where the button was"
    browser.resize(*NARROW)
    assert browser.overflow() == 0
    browser.screenshot("many-pods-narrow")
