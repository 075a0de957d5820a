"""Resolving decoded requests."""

import pytest

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.http.problems import Problem
from scorer_api.api.resolve import ResolvedRequest
from scorer_api.api.schemas import SOURCES, ScoreRequest
from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from tests.scorer_api.api.request_resolver import request_resolver


async def resolve(request: ScoreRequest) -> ResolvedRequest:
    return await request_resolver(View(Settings())).resolve(request)


async def test_token_ids_are_asked_for_as_they_are() -> None:
    request = ScoreRequest("m", [1, 2], lora_name="l")
    assert await resolve(request) == ResolvedRequest(request, "token_ids", Prompt("m", b"\x01\0\0\0\x02\0\0\0", "l", None))


async def test_no_tokens_are_tokens_too() -> None:
    assert (await resolve(ScoreRequest("m", []))).prompt.length == 0


async def test_hashes_are_asked_for_where_they_are_kept() -> None:
    """In a view of its own process nobody keeps them: there is no service that has them."""
    view = View(Settings())
    view.open(StreamKey("m", "pod", 0))
    view.mapped_key = lambda stream: {}.get
    request = ScoreRequest("m", block_hashes=[1, "0000000000000002"])
    assert await request_resolver(view).resolve(request) == ResolvedRequest(request, "block_hashes", EngineHashes("m", [1, 2]))


async def test_a_request_without_a_source_of_tokens_is_told_of_them_all() -> None:
    with pytest.raises(Problem) as raised:
        await resolve(ScoreRequest("m"))
    assert raised.value.status == 422
    assert [name for name in SOURCES if name not in raised.value.detail] == []
