"""Chats with images: the engine's render endpoint says which images are where in the tokens, its /tokenize only where they are."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from indexer.core.block_keys import fold_extra_keys, pack_tokens
from scorer_api.index.prompt import Placeholder, media_keys
from scorer_api.tokens.engine_tokenizer import RENDER, tokenized
from scorer_api.tokens.tokenize_input import TokenizedInput, TokenizeInput
from tests.engine import Engine, stored
from tests.engine_server import EngineServer, Reply, Request, json_reply
from tests.running import Running

# Four tokens of text, an image of eight, four of text again; the last one is never reused.
TOKENS = [1, 2, 3, 4, *[9] * 8, 5, 6, 7, 8, 7]
IMAGE = "data:image/png;base64,AAAA"
OTHER_IMAGE = "data:image/png;base64,BBBB"


def chat(url: str = IMAGE) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]}]


def render(request: Request) -> Reply:
    """As vLLM answers: the identifier of an image is a digest of its content."""
    url = request["messages"][0]["content"][1]["image_url"]["url"]
    features = {"mm_hashes": {"image": [f"hash of {url}"]}, "mm_placeholders": {"image": [{"offset": 4, "length": 8}]}, "kwargs_data": None}
    return json_reply({"request_id": "r", "token_ids": TOKENS, "features": features, "model": "m"})


def tokenize(_: Request) -> Reply:
    return json_reply({"tokens": TOKENS, "count": len(TOKENS)})


@pytest.fixture
def engine() -> Iterator[Engine]:
    """It has cached the chat with IMAGE."""
    with Engine() as engine:
        image = f"hash of {IMAGE}"
        engine.publish(stored([1, 2, 3, 4], TOKENS[:16], extra_keys=[None, [[image, 0]], [[image, -4]], None]))
        yield engine


def matched(service: Running, **body: Any) -> int:
    response = service.http.post(f"{service.url}/v1/score", json={"model": "m", **body})
    assert response.status_code == 200, response.text
    blocks: int = response.json()["pods"][0]["matched_blocks"]
    return blocks


def test_the_same_image_matches_and_another_one_up_to_it(engine: Engine) -> None:
    with EngineServer(routes={RENDER: render, "/tokenize": tokenize}) as api, Running(engine.spec(http=api.url)) as service:
        service.wait_for(sequence=0)
        assert [matched(service, messages=chat(url)) for url in (IMAGE, OTHER_IMAGE, IMAGE)] == [4, 1, 4]
        assert (api.request_counts[RENDER], api.request_counts["/tokenize"]) == (2, 0)  # the third answer came from the cache
        assert matched(service, messages=chat(), cache_salt="s") == 0
        assert matched(service, messages=chat(), block_extra_keys=[[1, [["other", 0]]]]) == 1
        text = [{"role": "user", "content": "no image"}]
        assert matched(service, messages=text) == 1
        assert api.request_counts["/tokenize"] == 1


@pytest.mark.parametrize(
    "rendered",
    [None, (404, b""), (400, b'{"message": "no"}'), (200, b"[]"), (200, b'{"token_ids": [1], "features": {"mm_hashes": {"image": ["a"]}}}')],
)
def test_without_a_render_endpoint_the_text_before_the_image_matches(engine: Engine, rendered: Reply | None) -> None:
    routes = {"/tokenize": tokenize, **({} if rendered is None else {RENDER: lambda _: rendered})}
    with EngineServer(routes=routes) as api, Running(engine.spec(http=api.url), load_interval_s="0") as service:
        service.wait_for(sequence=0)
        assert [matched(service, messages=chat(url)) for url in (IMAGE, OTHER_IMAGE)] == [1, 1]
        # A pod that does not render is not asked to each time.
        assert (api.request_counts[RENDER], api.request_counts["/tokenize"]) == (1, 2)


def test_the_extra_keys_of_media_by_hand() -> None:
    """Blocks of four: image a has tokens 2 to 8, image b tokens 9 and 10."""
    media = [Placeholder("b", 9, 2), Placeholder("a", 2, 7)]
    expected = {0: fold_extra_keys([["a", 2]], "salt"), 1: fold_extra_keys([["a", -2]], None), 2: fold_extra_keys([["a", -6], ["b", 1]], None)}
    assert media_keys(media, "salt", 4) == expected
    assert media_keys(media, None, 16) == {0: fold_extra_keys([["a", 2], ["b", 9]], None)}
    assert media_keys([], "salt", 4) == {0: fold_extra_keys([], "salt")}


@pytest.mark.parametrize(
    ("answer", "media"),
    [
        ({"token_ids": [1, 2]}, ()),
        ({"token_ids": [1, 2], "features": None}, ()),
        ({"token_ids": [1, 2], "features": {}}, ()),
        (
            {
                "token_ids": [1, 2],
                "features": {
                    "mm_hashes": {"image": ["a"], "audio": ["b"]},
                    "mm_placeholders": {"image": [{"offset": 0, "length": 1}], "audio": [{"offset": 1, "length": 1}]},
                },
            },
            (Placeholder("a", 0, 1), Placeholder("b", 1, 1)),
        ),
    ],
)
def test_what_a_rendered_chat_consists_of(answer: dict[str, Any], media: tuple[Placeholder, ...]) -> None:
    assert tokenized(json.dumps(answer).encode()) == TokenizedInput(pack_tokens([1, 2]), media)


@pytest.mark.parametrize(
    "features",
    [
        {"mm_hashes": {"image": ["a", "b"]}, "mm_placeholders": {"image": [{"offset": 0, "length": 1}]}},
        {"mm_hashes": {"image": ["a"]}, "mm_placeholders": {"image": [{"offset": 1, "length": 2}]}},
        {"mm_hashes": {"image": ["a"]}, "mm_placeholders": {"image": [{"offset": -1, "length": 2}]}},
        {"mm_hashes": {"image": [""]}, "mm_placeholders": {"image": [{"offset": 0, "length": 1}]}},
        {"mm_hashes": {"image": 1}},
    ],
)
def test_media_that_fit_no_tokens_are_refused(features: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, it is shown in the log
        tokenized(json.dumps({"token_ids": [1, 2], "features": features}).encode())


def test_which_chats_have_media() -> None:
    assert TokenizeInput("m", messages=json.dumps(chat()).encode()).has_media
    assert not TokenizeInput("m", messages=b'[{"role": "user", "content": "what is \\"image_url\\"?"}]').has_media
    assert not TokenizeInput("m", prompt='"image_url"').has_media
