"""Light and dark, narrow and wide, and names that are long or not what they seem."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.browser.chromium import NARROW, WIDE, Browser
from tests.engine import Engine, removed, stored
from tests.processes import serve
from tests.running import Command
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

PAGE = {"light": "rgb(244, 246, 248)", "dark": "rgb(15, 20, 25)"}
LONG = "llm-inference-pool-eu-west-1-" + "x" * 170
MARKUP = [
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><script>alert(1)</script>",
    "'\"><svg onload=alert(1)>",
    "<b>bold</b>&lt;i&gt;",
    "javascript:alert(1)",
    "{{7*7}}${7*7}",
    "\N{RIGHT-TO-LEFT OVERRIDE}txt.exe",
]


@pytest.fixture
def service() -> Iterator[Command]:
    with ExitStack() as stack:
        one, other = (stack.enter_context(Engine()) for _ in range(2))
        away = f"pod=away-{LONG},model={LONG},events=tcp://127.0.0.1:9"
        service = stack.enter_context(serve(None, one.spec(LONG, model=LONG), other.spec("b", model=LONG), away))
        tokens = range(400)
        one.publish(stored(range(1, 101), tokens), stored(range(61, 81), tokens[240:320], 60, medium="CPU"), removed(range(61, 101)))
        other.publish(stored(range(1, 31), tokens[:120]))
        service.wait_url().wait_for(pod=LONG, sequence=0)
        service.wait_for(pod="b", sequence=0)
        yield service


def ask(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "3 pods")
    browser.click("[value=token_ids]")
    browser.paste("#given", " ".join(map(str, range(402))))
    browser.click("#ask .main")
    browser.wait_for("#said", "80 of 100 blocks")
    browser.click("#matches summary")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, NARROW[0], 800, 1100, WIDE[0]])
def test_nothing_is_wider_than_the_page(browser: Browser, service: Command, width: int, theme: str) -> None:
    browser.prefer(theme)
    browser.resize(width, 900)
    ask(browser, service)
    browser.screenshot(f"{theme}-{width}")
    assert browser.overflow() == browser.overflow(".scroll") == 0
    script = """
        return [...document.querySelectorAll('body *:not(thead *)')]
            .filter(e => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
    """
    assert browser.js(script) == []


def test_the_theme_is_the_system_s_until_the_user_chooses(browser: Browser, service: Command) -> None:
    def theme() -> str:
        shown = browser.style("body", "backgroundColor")
        (name,) = (name for name, colour in PAGE.items() if colour == shown)
        return name

    browser.open(f"{service.url}/ui")
    for name in ("dark", "light"):
        browser.prefer(name)
        assert theme() == name
    for chosen in ("dark", "light"):
        browser.choose("#theme", chosen)
        assert theme() == chosen
        browser.prefer("light" if chosen == "dark" else "dark")
        assert theme() == chosen, "whatever the system says"
        browser.open(f"{service.url}/ui")
        assert theme() == chosen, "it is remembered"
    browser.choose("#theme", "")
    assert theme() == "dark"


def test_names_are_never_markup(browser: Browser) -> None:
    """Of pods, models, adapters and in what hints, reasons and errors say."""
    with ExitStack() as stack:
        engine = stack.enter_context(Engine())
        model = MARKUP[0]
        service = stack.enter_context(
            serve(None, *(engine.spec(name, model=model) for name in MARKUP), "pod=<i>away</i>,model=<u>other</u>,events=tcp://127.0.0.1:9")
        )
        for number, name in enumerate(MARKUP, 1):
            engine.publish(stored([number], range(4), lora_name=name, extra_keys=[[name]]))
        service.wait_url()
        for name in MARKUP:
            service.wait_for(pod=name, sequence=len(MARKUP) - 1)
        browser.open(f"{service.url}/ui")
        browser.wait_for("#summary", f"{len(MARKUP) + 1} pods")
        assert set(browser.texts("#streams th")) == {*MARKUP, "<i>away</i>"}
        assert set(browser.texts("#streams td[data-name=Model]")) == {model, "<u>other</u>"}
        assert set(browser.js("return [...document.querySelectorAll('#model option')].map(e => e.text)")) == {model, "<u>other</u>"}
        browser.choose("#model", model)
        browser.click("[value=token_ids]")
        browser.paste("#given", "0 1 2 3 4")
        browser.paste("#lora", MARKUP[1])
        browser.click("#ask .main")
        browser.wait_for("#said", "is the best: 1 of 1 block")
        assert set(browser.texts("#matches h3")) == set(MARKUP)
        assert browser.text("#facts").startswith(f"{model} · ")
        assert set(browser.js("return [...document.querySelectorAll('#adapters option')].map(e => e.value)")) == set(MARKUP)
        browser.paste("#lora", "<img src=y onerror=alert(2)>")
        browser.click("#ask .main")
        wait_until(lambda: any("<img src=y onerror=alert(2)>" in text for text in browser.texts("#hints li")))
        browser.paste("#lora", "")
        browser.click("[value=messages]")
        browser.paste("#given", "<img src=z>")
        browser.click("#ask .main")
        browser.wait_for("#ask-error", "<img src=z>")
        browser.choose("#model", "<u>other</u>")
        browser.click("[value=token_ids]")
        browser.paste("#given", "0 1 2 3 4")
        browser.click("#ask .main")
        browser.wait_for("#hints", "<i>away</i>: not connected")
        browser.screenshot("markup-in-names")
        markup = "img, script:not([src]), iframe, object, i, u, td b, [onload], [onerror], a[href^=javascript]"
        assert browser.js("return document.querySelectorAll(arguments[0]).length", markup) == 0
        assert browser.js("return document.querySelectorAll('script').length") == 1
        assert not browser.has_dialog()
        order = browser.js("const e = document.querySelectorAll('#streams bdi'); return [...e].map(e => getComputedStyle(e).unicodeBidi)")
        assert set(order) == {"isolate"}, "a name that turns its direction turns nothing else"


def test_the_policy_holds_even_where_a_script_would_break_it(browser: Browser, service: Command) -> None:
    """Seen from within the page: markup from text is refused, and so is anything from elsewhere."""
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "3 pods")
    refused = browser.js("try { document.body.innerHTML = '<p>x</p>'; return 'no'; } catch (error) { return error.name; }")
    assert refused == "TypeError"
    script = "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('asked'), error => done(error.name))"
    assert browser.driver.execute_async_script(script) == "TypeError"
    broken = [
        said for said in browser.faults() if said.source == "security" or "Content Security Policy" in said.message or "TrustedHTML" in said.message
    ]
    assert len(broken) >= 2
    browser.forgive()
