"""Resolves prompts and chats to tokens: from the cache, from a request that is under way, from a local tokenizer, or from an engine."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Protocol, Self

from indexer.config.settings import Settings
from indexer.http.problems import Problem
from scorer_api.metrics import TokenMetrics
from scorer_api.tokens.cache import TokenCache
from scorer_api.tokens.engine_tokenizer import EngineTokenizer
from scorer_api.tokens.single_flight import SingleFlight
from scorer_api.tokens.tokenize_input import TokenizedInput, TokenizeInput, digest

LONG_INPUT_BYTES = 1_048_576


class Tokenizer(Protocol):
    """A local tokenizer of one model."""

    async def tokens(self, tokenize_input: TokenizeInput) -> bytes:
        """The tokens as little-endian uint32. Raises Problem."""
        ...

    def close(self) -> None:
        """Stop its threads."""
        ...


class TokenResolver:
    """`async with TokenResolver(settings, engines, tokenizers, metrics) as tokens: await tokens.resolve(model, tokenize_input)`.

    `tokenizers`: model → its local tokenizer; engines are asked for the tokens of other models.
    """

    def __init__(self, settings: Settings, engines: EngineTokenizer, tokenizers: Mapping[str, Tokenizer], metrics: TokenMetrics) -> None:
        self._engines = engines
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._cache: TokenCache[TokenizedInput] = TokenCache(
            settings.limits.tokenize.tokenize_cache_entries_max, settings.limits.tokenize.tokenize_cache_bytes_max
        )
        self._flights: SingleFlight[TokenizedInput] = SingleFlight()
        metrics.cached_bytes.set_function(lambda: self._cache.bytes)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._engines)
            for tokenizer in self._tokenizers.values():
                stack.callback(tokenizer.close)
            stack.push_async_callback(self._flights.aclose)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def resolve(self, model: str, tokenize_input: TokenizeInput) -> TokenizedInput:
        """The tokens. `model`: whose pods are asked; the input may name an adapter of it. Raises Problem."""
        body = tokenize_input.request()
        named = model.encode(errors="replace") + b"\0" + body
        # A digest of megabytes takes milliseconds, in which other requests have their turn.
        key = digest(named) if len(named) < LONG_INPUT_BYTES else await asyncio.to_thread(digest, named)
        cached = self._cache.get(key, time.monotonic())
        if cached is not None:
            self._metrics.found["cache"].inc()
            return cached
        local = self._tokenizers.get(model)
        source = "shared" if self._flights.is_running(key) else "engine" if local is None else "local"

        async def tokenize() -> TokenizedInput:
            if local is None:
                tokens = await self._engines.tokens(model, tokenize_input, body)
            else:
                tokens = TokenizedInput(await local.tokens(tokenize_input))
            self._cache.put(key, tokens, time.monotonic())
            return tokens

        try:
            tokens = await self._flights.run(key, tokenize)
        except Problem:
            self._metrics.found["nowhere"].inc()
            raise
        self._metrics.found[source].inc()
        return tokens
