"""What the page draws of a prompt is what /v1/explain says of it."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.browser.chromium import Browser
from tests.engine import Engine, batch, removed, stored
from tests.engine_server import EngineServer
from tests.processes import serve
from tests.running import Client, Command
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

PROMPT = [*range(100, 141)]
"""41 tokens: ten blocks of 4 that can match, or five of 8."""
EXPLAIN = "/v1/explain"


def bars(browser: Browser, css: str = "#matches > li > .bar") -> list[dict[str, Any]]:
    """Of each bar: its width in pixels, its pieces as parts of it, with the blocks that they stand for, and where its mark stands."""
    script = """
        return [...document.querySelectorAll(arguments[0])].map(bar => {
            const box = bar.getBoundingClientRect(), end = bar.querySelector('.end');
            const pieces = [...bar.querySelectorAll('rect')].map(piece => {
                const own = piece.getBoundingClientRect();
                return {kind: piece.getAttribute('class'), from: (own.left - box.left) / box.width, part: own.width / box.width,
                        blocks: Number(piece.dataset.blocks), fill: getComputedStyle(piece).fill};
            });
            const at = end?.getBoundingClientRect();
            return {width: box.width, pieces, end: at ? ((at.left + at.right) / 2 - box.left) / box.width : null};
        });
    """
    return list(browser.js(script, css))


def explained(service: Client, **request: Any) -> dict[str, Any]:
    response = service.http.post(service.url + EXPLAIN, json={"model": "m", **request})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def ask(browser: Browser, given: str, source: str = "token_ids") -> None:
    browser.click(f"[value={source}]")
    browser.paste("#given", given)
    browser.click("#ask .main")


def sent(browser: Browser) -> dict[str, Any]:
    """The last request for an explanation."""
    bodies = [request.body for request in browser.requests() if request.url.endswith(EXPLAIN)]
    body: dict[str, Any] = json.loads(bodies[-1] or "")
    return body


@pytest.fixture(scope="module")
def service() -> Iterator[Command]:
    """Rank 0 of a holds four blocks on the gpu and two on the cpu, and lost the next; rank 1 holds one. b has blocks of 8, c has none."""
    with ExitStack() as stack:
        first, second, large, new = (stack.enter_context(Engine()) for _ in range(4))
        specs = [first.spec("a", rank=0), second.spec("a", rank=1), large.spec("b"), new.spec("c")]
        service = stack.enter_context(serve(None, *specs, body_bytes_max="10000"))
        first.publish(stored(range(1, 8), PROMPT[:28]), stored([5, 6], PROMPT[16:24], 4, medium="CPU"))
        first.publish(removed([5, 6, 7]))
        second.publish_payload(batch([stored([1], PROMPT[:4])], 1))
        large.publish(stored([1, 2, 3], PROMPT[:24], block_size=8), stored([9], range(8), block_size=8, lora_name="ad", extra_keys=[["ad"]]))
        service.wait_url().wait_for(pod="a", sequence=1, trust="live")
        service.wait_for(pod="a", rank=1, sequence=0, trust="live")
        service.wait_for(pod="b", sequence=0, trust="live")
        service.wait_for(pod="c", trust="live")
        yield service


def test_each_bar_is_as_long_as_its_pod_matches(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    ask(browser, json.dumps(PROMPT))
    browser.wait_for("#said", "b is the best: 3 of 5 blocks of 8 tokens, score 0.6000")
    drawn = dict(zip(browser.texts("#matches h3"), bars(browser), strict=True))
    whole = len(PROMPT)
    # Pieces by hand: what can match at all, and the runs. Their unit is the prompt's tokens.
    expected = {
        "a": [("track", 0, 40, 10), ("gpu", 0, 16, 4), ("cpu", 16, 8, 2)],
        "b": [("track", 0, 40, 5), ("gpu", 0, 24, 3)],
        "c": [("track", 0, 0, 0)],
    }
    for pod, pieces in expected.items():
        found = drawn[pod]["pieces"]
        assert [(piece["kind"], piece["blocks"]) for piece in found] == [(kind, blocks) for kind, _, _, blocks in pieces]
        for piece, (_, start, tokens, _) in zip(found, pieces, strict=True):
            assert piece["from"] == pytest.approx(start / whole, abs=1 / drawn[pod]["width"])
            assert piece["part"] == pytest.approx(tokens / whole, abs=1 / drawn[pod]["width"])
    assert drawn["a"]["end"] == pytest.approx(24 / whole, abs=2 / drawn["a"]["width"])
    assert drawn["b"]["end"] == pytest.approx(24 / whole, abs=2 / drawn["b"]["width"])
    assert drawn["c"]["end"] is None
    assert len({piece["fill"] for piece in drawn["a"]["pieces"]}) == 3, "each tier has a colour of its own"
    assert browser.names("#matches > li > .bar") == ["3 of 5 blocks match: gpu 3", "6 of 10 blocks match: gpu 4, then cpu 2", "no block can match"]


def test_what_is_said_of_pods_and_ranks_is_what_the_api_says(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    ask(browser, " ".join(map(str, PROMPT)))
    browser.wait_for("#said", "b is the best")
    answer = explained(service, token_ids=PROMPT)
    assert browser.texts("#matches h3") == [pod["pod"] for pod in answer["pods"]] == ["b", "a", "c"]
    assert browser.texts("#matches > li > p") == [pod["why"] for pod in answer["pods"]]
    # 24 / 40, and (16 * 1.0 + 8 * 0.8) / 40
    assert browser.texts("#matches > li > .head .figures") == [
        "score 0.6000 · 24 tokens · 3 of 5 blocks of 8 tokens",
        "score 0.5600 · 24 tokens · 6 of 10 blocks of 4 tokens",
        "score 0.0000 · 0 tokens · 0 of 0 blocks",
    ]
    assert browser.texts("#hints li") == [f"{hint['code']}: {hint['detail']}" for hint in answer["hints"]]
    assert [hint["code"] for hint in answer["hints"]] == ["no_events", "block_sizes_differ"]
    for text in ("m ·", "41 tokens from token_ids", "3 pods", "view of embedded"):
        assert text in browser.text("#facts")

    assert browser.texts(".ranks") == [], "ranks are folded away"
    for number in (1, 2, 3):
        browser.click(f"#matches > li:nth-child({number}) summary")
    ranks = [rank for pod in answer["pods"] for rank in pod["ranks"]]
    ends = [rank["end"] for rank in ranks]
    assert [(end["reason"], end["block"], end["sequence"]) for end in ends] == [
        ("never_stored", 3, None),
        ("removed", 6, 1),
        ("never_stored", 1, None),
        ("nothing_announced", 0, None),
    ]
    assert browser.texts(".ranks b") == ["rank 0", "rank 0", "rank 1", "rank 0"]
    assert browser.texts(".ranks p") == [f"{end['reason']} at block {end['block']}: {end['detail']}" for end in ends]
    assert [bar["pieces"][1:] and bar["pieces"][1]["blocks"] for bar in bars(browser, ".ranks .bar")] == [3, 4, 1, []]


def test_each_pod_s_load_stands_beside_its_match(browser: Browser) -> None:
    """Of one that tells everything, one that does not tell of its cache, and one that nobody asks."""
    metrics = b"vllm:num_requests_running 1234.0\nvllm:num_requests_waiting 0.0\n"
    with (
        EngineServer(routes={"/metrics": lambda _: (200, metrics + b"vllm:kv_cache_usage_perc 0.706\n")}) as full,
        EngineServer(routes={"/metrics": lambda _: (200, metrics)}) as part,
        Engine() as engine,
        serve(None, engine.spec("a", http=full.url), engine.spec("b", http=part.url), engine.spec("c"), load_interval_s="0.1") as service,
    ):
        engine.publish(stored([1, 2], PROMPT[:8]))
        service.wait_url()
        wait_until(lambda: [pod["load"] is None for pod in explained(service, token_ids=PROMPT)["pods"]] == [False, False, True])
        for pod in "abc":
            service.wait_for(pod=pod, sequence=0)
        browser.open(f"{service.url}/ui")
        for theme, width in (("light", 1600), ("dark", 1600), ("light", 400)):
            browser.prefer(theme)
            browser.resize(width, 900)
            ask(browser, json.dumps(PROMPT))
            browser.wait_for("#said", "a is the best: 2 of 10 blocks")
            shown = browser.texts("#matches > li > .head .load")
            assert [re.sub(r"\d\.\d s", "0.0 s", text) for text in shown] == [
                "1,234 running · 0 waiting · 71% of the cache in use · 0.0 s ago",
                "1,234 running · 0 waiting · cache use not known · 0.0 s ago",
                "load not known",
            ]
            assert browser.overflow() == 0
            browser.screenshot(f"load-{theme}-{width}")


def test_a_whole_match_and_a_short_prompt_say_so(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    ask(browser, ",".join(map(str, PROMPT[:9])))
    browser.wait_for("#said", "a is the best: 2 of 2 blocks of 4 tokens, score 1.0000")
    browser.click("#matches > li summary")
    assert browser.texts(".ranks p")[0].startswith("whole_prompt: ")
    assert bars(browser)[0]["end"] is None
    ask(browser, "[1]")
    browser.wait_for("#said", "No pod holds the beginning of it.")
    assert {end["pieces"][0]["blocks"] for end in bars(browser)} == {0}
    assert any("prompt_too_short" in text for text in browser.texts("#hints li"))


def test_all_that_was_filled_in_is_asked_for(browser: Browser, service: Command) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "3 pods")
    browser.write("#lora", "ad")
    browser.write("#salt", "s")
    ask(browser, "[0,1,2,3,4,5,6,7,8]")
    browser.wait_for("#said", "No pod holds")
    assert sent(browser) == {"model": "m", "token_ids": [*range(9)], "lora_name": "ad", "cache_salt": "s"}
    browser.write("#salt", "")
    browser.click("#ask .main")
    browser.wait_for("#said", "b is the best: 1 of 1 block of 8 tokens")
    assert sent(browser) == {"model": "m", "token_ids": [*range(9)], "lora_name": "ad"}
    assert browser.js("return [...document.querySelectorAll('#adapters option')].map(e => e.value)") == ["ad"]
    browser.write("#lora", "")
    messages = [{"role": "user", "content": "Grüße <b>"}]
    ask(browser, json.dumps(messages), "messages")
    wait_until(lambda: sent(browser) == {"model": "m", "messages": messages})
    ask(browser, json.dumps({"messages": messages, "tools": [], "add_generation_prompt": False}), "messages")
    wait_until(lambda: sent(browser) == {"model": "m", "messages": messages, "tools": [], "add_generation_prompt": False})
    ask(browser, "  two\n\twords ", "prompt")
    wait_until(lambda: sent(browser) == {"model": "m", "prompt": "  two\n\twords "})


@pytest.mark.parametrize(
    ("source", "given", "said"),
    [
        ("prompt", "", "nothing to ask about yet"),
        ("token_ids", "1 2 x", 'Token 2 is "x"; it should be a whole number from 0 to 4294967295'),
        ("token_ids", "[1, 4294967296]", "Token 1 is 4294967296"),
        ("token_ids", "[1, -1]", "Token 1 is -1"),
        ("token_ids", "[1, 1.5]", "Token 1 is 1.5"),
        ("token_ids", "[1, null]", "Token 1 is null"),
        ("token_ids", "[1,", "A list of token ids should be JSON: "),
        ("messages", "Hello", "Messages should be JSON: "),
        ("messages", "7", "Messages should be a JSON list, or an object"),
        ("messages", '{"messages": "x"}', "Messages should be a JSON list, or an object"),
        ("messages", '{"messages": [], "model": "x"}', "Beside messages there can be tools, chat_template_kwargs, add_generation_prompt, not model"),
    ],
)
def test_a_mistake_is_named_where_it_was_made(browser: Browser, service: Command, source: str, given: str, said: str) -> None:
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "3 pods")
    ask(browser, given, source)
    browser.wait_for("#ask-error", said)
    assert browser.focused() == "given"
    assert browser.js("return document.getElementById('given').getAttribute('aria-invalid')") == "true"
    assert [request.url for request in browser.requests() if request.url.endswith(EXPLAIN)] == []
    ask(browser, json.dumps(PROMPT))
    browser.wait_for("#said", "b is the best")
    assert browser.text("#ask-error") == ""


@pytest.mark.parametrize("field", ["lora_name", "token_ids"])
def test_what_the_service_refuses_is_shown_with_its_reason(browser: Browser, service: Command, field: str) -> None:
    """A value that is wrong, and a body that is too large."""
    body: dict[str, Any] = (
        {"model": "m", "token_ids": [1], "lora_name": "x" * 5000} if field == "lora_name" else {"model": "m", "token_ids": [1] * 10_000}
    )
    problem = service.http.post(service.url + EXPLAIN, json=body).json()
    assert problem["status"] == (422 if field == "lora_name" else 413)
    browser.open(f"{service.url}/ui")
    browser.wait_for("#summary", "3 pods")
    ask(browser, json.dumps(PROMPT))
    browser.wait_for("#said", "b is the best")
    browser.paste("#lora", body.get("lora_name", ""))
    ask(browser, " ".join(map(str, body["token_ids"])))
    browser.wait_for("#ask-error", str(problem["status"]))
    assert browser.text("#ask-error") == f"{problem['status']} {problem['title']}: {problem['detail']}"
    assert not browser.is_shown("#answer"), "the answer to something else is gone"
    browser.screenshot(f"refused-{field}")


def test_the_demo_shows_itself(browser: Browser) -> None:
    """The README's first command, and what it says to try."""
    with Command("demo", "--port", "0") as demo:
        browser.open(f"{demo.wait_url().url}/ui")
        browser.wait_for("#summary", "2 pods · 2 streams: 2 live")
        tokens = [*range(1, 65), *range(11001, 11066)]
        ask(browser, " ".join(map(str, tokens)))
        browser.wait_for("#said", "demo-1 is the best: 8 of 8 blocks of 16 tokens, score 1.0000")
        scores = {pod["pod"]: pod["matched_blocks"] for pod in demo.score(tokens, "demo/chat")["pods"]}
        drawn = {
            pod: sum(piece["blocks"] for piece in bar["pieces"][1:]) for pod, bar in zip(browser.texts("#matches h3"), bars(browser), strict=True)
        }
        assert drawn == scores == {"demo-1": 8, "demo-0": 4}
        browser.screenshot("demo")

        # The demo engines' tokenizer has a number for the token of that number.
        text = " ".join(map(str, tokens))
        for given, source in ((text, "prompt"), (json.dumps([{"role": "user", "content": text}]), "messages")):
            ask(browser, given, source)
            browser.wait_for("#facts", f"129 tokens from {source}")
            browser.wait_for("#said", "demo-1 is the best: 8 of 8 blocks of 16 tokens, score 1.0000")
