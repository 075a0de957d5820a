"""The page outlives the service, and asks for a token where that is wanted."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Browser
from tests.engine import Engine, stored
from tests.ports import free_port
from tests.processes import serve
from tests.running import Command
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

TOKEN, OTHER = "a-token.of+ours==", "another"


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        engine.publish(stored([1, 2], range(8)))
        yield engine


def test_a_service_that_goes_away_and_comes_back(browser: Browser, engine: Engine) -> None:
    """Killed, it is said to be away, and what was typed stays; back again, the page goes on by itself."""
    port = str(free_port())
    with serve(None, engine.spec("a"), port=port) as service:
        service.wait_url().wait_for(pod="a", sequence=0)
        browser.open(f"{service.url}/ui")
        browser.wait_for("#chart .legend", "gpu 2 blocks")
        browser.click("[value=token_ids]")
        browser.paste("#given", "0 1 2 3 4 5 6 7 8")
        service.kill()
        browser.wait_for("#trouble", "The service cannot be reached.", "goes on when the service is back")
        assert browser.js("return document.getElementById('trouble').getAttribute('role')") == "alert"
        assert browser.texts("#streams th") == ["a"], "what was known is still shown"
        browser.click("#ask .main")
        browser.wait_for("#ask-error", "The service cannot be reached")
        browser.screenshot("away")
    with serve(None, engine.spec("a"), engine.spec("b"), port=port) as service:
        wait_until(lambda: browser.text("#trouble") == "")
        wait_until(lambda: browser.texts("#streams th") == ["a", "b"])
        browser.wait_for("#chart .legend", "gpu 4 blocks")
        pieces = len(browser.js("return [...document.querySelectorAll('#chart polygon')].map(e => e.getAttribute('points'))"))
        assert pieces == 2, "nothing is drawn for the time when nothing was known"
        assert browser.js("return document.getElementById('given').value") == "0 1 2 3 4 5 6 7 8"
        browser.click("#ask .main")
        browser.wait_for("#said", "a is the best: 2 of 2 blocks")
        assert browser.text("#ask-error") == ""


def test_a_service_that_hangs_is_away_too(browser: Browser, engine: Engine) -> None:
    with serve(None, engine.spec("a")) as service:
        service.wait_url().wait_for(pod="a", sequence=0)
        browser.open(f"{service.url}/ui")
        browser.wait_for("#summary", "1 pod")
        service.freeze()
        try:
            browser.wait_for("#trouble", "The service did not answer within 10 s")
        finally:
            service.thaw()
        wait_until(lambda: browser.text("#trouble") == "")


def denied(service: Command) -> float:
    text = service.http.get(f"{service.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("kv_indexer_denied_total{"))


def test_a_token_is_asked_for_kept_in_the_tab_and_forgotten(browser: Browser, engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n")
    with serve(None, engine.spec("a"), api_token_file=str(file)) as service:
        service.http.headers["Authorization"] = f"Bearer {TOKEN}"
        service.wait_url().wait_for(pod="a", sequence=0)
        browser.open(f"{service.url}/ui")
        browser.wait_for("#token-form", "A token, please")
        browser.screenshot("token")
        assert browser.focused() == "token"
        assert "Bearer" in browser.text("#token-why")
        assert browser.text("#trouble") == ""
        before = denied(service)
        wait_until(lambda: browser.js("return performance.now()") > 7000)
        assert denied(service) == before, "without a token nothing is asked again and again"

        browser.press(*"two words", "ENTER")
        browser.wait_for("#token-why", "A token has no spaces")
        browser.write("#token", "wrong")
        browser.press("ENTER")
        browser.wait_for("#token-why", "not a good one")
        browser.write("#token", TOKEN)
        browser.press("ENTER")
        browser.wait_for("#summary", "1 pod")
        assert not browser.is_shown("#token-form")
        browser.click("[value=token_ids]")
        browser.paste("#given", "0 1 2 3 4 5 6 7 8")
        browser.click("#ask .main")
        browser.wait_for("#said", "a is the best")
        assert TOKEN not in browser.js("return document.documentElement.outerHTML + location.href + JSON.stringify(localStorage)")

        browser.open(f"{service.url}/ui")
        browser.wait_for("#summary", "1 pod")
        with_token = [request for request in browser.requests() if request.headers.get("Authorization") == f"Bearer {TOKEN}"]
        assert {request.url.removeprefix(service.url) for request in with_token} == {"/v1/pods", "/v1/models", "/metrics", "/v1/explain"}

        file.write_text(f"{OTHER}\n")
        browser.wait_for("#token-why", "not a good one")
        browser.write("#token", OTHER)
        browser.press("ENTER")
        browser.wait_for("#summary", "1 pod")
        browser.click("#forget")
        browser.wait_for("#token-form", "A token, please")
        assert browser.js("return sessionStorage.length") == 0


def test_admin_tokens_alone_ask_for_nothing(browser: Browser, engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("admin")
    with serve(None, engine.spec("a"), admin_token_file=str(file)) as service:
        browser.open(f"{service.wait_url().url}/ui")
        browser.wait_for("#summary", "1 pod")
        assert not browser.is_shown("#token-form")
