"""Everything on the page can be done by keyboard, and has a name."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.browser.chromium import Browser
from tests.engine import Engine, stored
from tests.processes import serve
from tests.running import Command
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

STOPS = ["a Skip to the pods", "theme", "model", "input ", "given", "lora", "salt", "button Explain", "pick"]
AFTER_ANSWER = ["summary 1 rank", "summary 1 rank"]
LAST = ["filter", "sort", "backwards", "list"]


@pytest.fixture
def service() -> Iterator[Command]:
    with Engine() as one, Engine() as other, serve(None, one.spec("a"), other.spec("b")) as service:
        one.publish(stored([1, 2], range(8)))
        other.publish(stored([1], range(4)))
        for pod in "ab":
            service.wait_url().wait_for(pod=pod, sequence=0)
        yield service


def has_visible_focus(browser: Browser) -> bool:
    script = """
        const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
        return style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2 && box.width > 0 && box.bottom > 0 && box.top < innerHeight;
    """
    return bool(browser.js(script))


def test_tab_goes_from_top_to_bottom_and_back_and_what_has_the_focus_can_be_seen(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "2 pods")
    browser.js("document.body.focus()")
    for stop in [*STOPS, *LAST]:
        browser.press("TAB")
        assert browser.focused() == stop
        assert has_visible_focus(browser), stop
    for stop in reversed([*STOPS, *LAST[:-1]]):
        browser.press("TAB", holding=["SHIFT"])
        assert browser.focused() == stop
        assert has_visible_focus(browser), stop


def test_a_prompt_is_asked_about_and_its_answer_read_by_keyboard_alone(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "2 pods")
    browser.press(*["TAB"] * 4)
    browser.press("DOWN", "DOWN", "DOWN")
    assert browser.text("#given-label") == "Token ids"
    browser.press("TAB", *"0 1 2 3 4 5 6 7 8")
    assert browser.focused() == "given"
    browser.press("TAB", "ENTER")
    browser.wait_for("#said", "a is the best: 2 of 2 blocks")
    assert browser.js("return document.getElementById('said').getAttribute('role')") == "status", "it is read out"
    browser.press("TAB", "TAB")
    assert browser.focused() == "button Explain"
    browser.press("TAB")
    assert browser.focused() == "pick"
    for stop in AFTER_ANSWER:
        browser.press("TAB")
        assert browser.focused() == stop
        browser.press("ENTER")
    wait_until(lambda: len(browser.texts(".ranks p")) == 2)
    browser.press("SPACE")
    wait_until(lambda: len(browser.texts(".ranks p")) == 1)
    browser.press("TAB", *"stale")
    wait_until(lambda: browser.text("#shown") == "0 of 2 streams")

    browser.js("document.querySelector('.skip').focus()")
    browser.press("ENTER")
    wait_until(lambda: browser.focused() == "pods", what="the focus where the link leads")


def test_control_and_enter_ask_from_within_the_prompt_and_enter_alone_does_not(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "2 pods")
    browser.click("[value=token_ids]")
    browser.click("#given")
    browser.press("0", " ", "1", "ENTER", "2", " ", "3", " ", "4")
    assert browser.js("return document.getElementById('given').value") == "0 1\n2 3 4"
    assert browser.text("#said") == ""
    browser.press("ENTER", holding=["CONTROL"])
    browser.wait_for("#said", "a is the best: 1 of 1 block of 4 tokens")
    assert browser.focused() == "given"


def test_escape_stops_asking(browser: Browser, service: Command) -> None:
    """The service hangs."""
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "2 pods")
    browser.click("[value=token_ids]")
    browser.paste("#given", "0 1 2 3 4")
    service.freeze()
    try:
        browser.press("ENTER", holding=["CONTROL"])
        browser.wait_for("#said", "Asking …")
        browser.press("ESCAPE")
        browser.wait_for("#said", "Not asked any more.")
    finally:
        service.thaw()
    browser.press("ENTER", holding=["CONTROL"])
    browser.wait_for("#said", "a is the best")


def test_everything_has_a_name(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "2 pods")
    browser.click("[value=token_ids]")
    browser.paste("#given", "0 1 2 3 4")
    browser.click("#ask .main")
    browser.wait_for("#said", "is the best")
    browser.js("document.querySelectorAll('details').forEach(e => e.open = true)")
    controls = "input, select, textarea, button, summary, table, svg, [role=region], form, section"
    names = browser.names(f":is({controls}):not([hidden], [hidden] *)")
    assert len(names) > 20
    assert "" not in names
    assert browser.names("#model, #given, #lora, #salt, #theme, #filter") == [
        "Theme", "Model", "Token ids", "LoRA adapter (optional)", "Cache salt (optional)", "Only with"
    ]  # fmt: skip
    headings = browser.js("return [...document.querySelectorAll('h1, h2, h3')].filter(e => e.checkVisibility()).map(e => Number(e.tagName[1]))")
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    assert browser.js("return document.documentElement.lang") == "en"
