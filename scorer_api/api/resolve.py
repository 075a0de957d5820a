"""Resolves a decoded request: finds its tokens, wherever they come from, and what is looked up in the prefix index."""

import asyncio
from collections.abc import Collection

import msgspec
from msgspec import UNSET, Struct, UnsetType

from indexer.http.problems import Problem
from scorer_api.api.adapters import Adapters
from scorer_api.api.prompt import STEP_BLOCKS, has_chat_fields, prompt_in_steps, prompt_of, tokenize_input_of
from scorer_api.api.schemas import SOURCES, ScoreRequest
from scorer_api.api.steps import one_by_one
from scorer_api.index.engine_hashes import EngineHashes, normalised
from scorer_api.index.prompt import Prompt, Query
from scorer_api.index.view import View
from scorer_api.tokens.resolver import TokenResolver
from scorer_api.tokens.tokenize_input import TokenizedInput

# The keys of 65,536 tokens take about two milliseconds, those of a run less than 0.1; so do so many look-ups of hashes.
LONG_PROMPT_TOKENS = 65_536
LONG_HASHES = 8_192
RUNS_PER_TURN = 16


class ResolvedRequest(Struct, frozen=True):
    """A request, and the prompt to look up. `source`: the field that its tokens came from, one of SOURCES."""

    request: ScoreRequest
    source: str
    prompt: Query

    def tokens(self, block_size: int | None) -> int:
        """The prompt's length in tokens. `block_size`: the best pod's, None if unknown; each engine hash counts as that many tokens."""
        return self.prompt.length if isinstance(self.prompt, Prompt) else len(self.prompt.hashes) * (block_size or 0)

    def unknown_pods(self, known: Collection[str]) -> list[str] | UnsetType:
        """The requested pods that are not known, each once; UNSET if the request names no pods."""
        if self.request.pods is None:
            return UNSET
        return [pod for pod in dict.fromkeys(self.request.pods) if pod not in known]


class RequestResolver:
    """Resolves the requests of all routes: for scores, batches, explanations and picks."""

    def __init__(self, view: View, tokens: TokenResolver, adapters: Adapters) -> None:
        self._view = view
        self._tokens = tokens
        self._adapters = adapters
        self.turn = asyncio.Lock()
        """Held by the one long request whose piece is next: many of them take no more of each turn of the event loop than one does."""

    async def resolve(self, request: ScoreRequest) -> ResolvedRequest:
        """Raises Problem: 404 for an unknown model, 422 for values that do not fit together, 501 or 502 where there are no tokens or hashes."""
        source = source_of(request)
        # The base model is looked up; the answer repeats the model of the request.
        is_model = self._view.has_model(request.model)
        of_base = self._adapters.with_adapter(request) if is_model else self._adapters.with_known_model(request)
        if source == "block_hashes":
            return ResolvedRequest(request, source, await self._prepared_hashes(self._hashes_of(of_base)))
        tokenize_input = tokenize_input_of(of_base)
        if source == "token_ids":
            return ResolvedRequest(request, source, await self.prepared(await self._prompt_of(of_base)))
        if not self._view.has_model(of_base.model):
            raise unknown_model(of_base.model)
        prompt = await self._prompt_of(of_base, await self._tokens.resolve(of_base.model, tokenize_input))
        return ResolvedRequest(request, source, await self.prepared(prompt))

    def resolve_at_once(self, request: ScoreRequest) -> ResolvedRequest | None:
        """The same of a request of a known model with its tokens, where these are few; None for others. Raises Problem."""
        if source_of(request) != "token_ids" or not self._view.has_model(request.model) or len(request.block_extra_keys or ()) >= STEP_BLOCKS:
            return None
        of_base = self._adapters.with_adapter(request)
        if has_chat_fields(of_base):
            return None
        prompt = prompt_of(of_base)
        return ResolvedRequest(request, "token_ids", prompt) if prompt.length < LONG_PROMPT_TOKENS else None

    def base_model(self, name: str) -> str | None:
        """The model that pods serve by this name, by this alias, or with this adapter; None where there is none, or more than one."""
        if self._view.has_model(name):
            return name
        try:
            found = self._adapters.with_known_model(ScoreRequest(name)).model
        except Problem:
            return None
        return found if self._view.has_model(found) else None

    async def _prompt_of(self, request: ScoreRequest, tokenized: TokenizedInput | None = None) -> Prompt:
        """The request's prompt. Other requests have their turn where it has extra keys of many blocks."""
        if len(request.block_extra_keys or ()) < STEP_BLOCKS:
            return prompt_of(request, tokenized)
        async with self.turn:
            return await one_by_one(prompt_in_steps(request, tokenized))

    async def prepared(self, prompt: Prompt) -> Prompt:
        """The prompt, with its keys if it is long. Other requests have their turn while they are computed."""
        if prompt.length < LONG_PROMPT_TOKENS:
            return prompt
        prompt = msgspec.structs.replace(prompt, prepared=self._view.keys_of(prompt))
        await self._prepare(prompt)
        return prompt

    async def _prepared_hashes(self, hashes: EngineHashes) -> EngineHashes:
        """The same of engine hashes."""
        if len(hashes.hashes) * self._view.count_streams(hashes.model) >= LONG_HASHES:
            await self._prepare(hashes)
        return hashes

    async def _prepare(self, query: Query) -> None:
        async with self.turn:
            for number, _ in enumerate(self._view.prepare(query)):
                if number % RUNS_PER_TURN == 0:
                    await asyncio.sleep(0)

    def _hashes_of(self, request: ScoreRequest) -> EngineHashes:
        try:
            hashes = EngineHashes(request.model, normalised(request.block_hashes or ()))
        except ValueError as error:
            raise Problem(422, str(error)) from None
        try:
            why_not = self._view.why_no_hashes(request.model)
        except KeyError:
            return hashes  # the look-up that follows reports the unknown model
        if why_not is not None:
            raise Problem(501, f"block_hashes: {why_not}; or ask with token_ids")
        return hashes


def source_of(request: ScoreRequest) -> str:
    """The one field that gives the request's tokens. Raises Problem 422 if there is none, or more than one."""
    given = [name for name in SOURCES if getattr(request, name) not in (None, UNSET)]
    if len(given) == 1:
        return given[0]
    raise Problem(422, f"the prompt should be given as exactly one of {', '.join(SOURCES)}, not as {' and '.join(given) or 'none of them'}")


def unknown_model(model: str) -> Problem:
    """The problem for a model that no pod is registered for."""
    return Problem(404, f"model: {model!r} is not known; it is once a pod of it is registered, see /v1/models")
