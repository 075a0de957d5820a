"""The tokens of prompts and chats: remembered, being asked for already, from a tokenizer of our own, or from an engine."""

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
from scorer_api.tokens.sharing import Sharing
from scorer_api.tokens.wording import Wording, digest


class Tokenizer(Protocol):
    """One of our own."""

    async def tokens(self, wording: Wording) -> bytes:
        """Packed. Raises Problem."""
        ...

    def close(self) -> None:
        """No more of it."""
        ...


class Texts:
    """`async with Texts(settings, engines, tokenizers, metrics) as texts:` finds tokens. `tokenizers`: model → one of our own."""

    def __init__(self, settings: Settings, engines: EngineTokenizer, tokenizers: Mapping[str, Tokenizer], metrics: TokenMetrics) -> None:
        self._engines = engines
        self._tokenizers = tokenizers
        self._metrics = metrics
        self._cache = TokenCache(settings.tokenize_cache_entries_max, settings.tokenize_cache_bytes_max)
        self._sharing: Sharing[bytes] = Sharing()
        metrics.cached_bytes.set_function(lambda: self._cache.bytes)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._engines)
            for own in self._tokenizers.values():
                stack.callback(own.close)
            stack.push_async_callback(self._sharing.aclose)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def tokens(self, model: str, wording: Wording) -> bytes:
        """Packed. `model`: whose pods know, where the wording's own may be that of an adapter. Raises Problem."""
        request = wording.request()
        key = digest(model.encode(errors="replace") + b"\0" + request)
        found = self._cache.get(key, time.monotonic())
        if found is not None:
            self._metrics.found["cache"].inc()
            return found
        own = self._tokenizers.get(model)
        source = "shared" if self._sharing.has(key) else "engine" if own is None else "local"

        async def find() -> bytes:
            tokens = await (self._engines.tokens(model, wording, request) if own is None else own.tokens(wording))
            self._cache.put(key, tokens, time.monotonic())
            return tokens

        try:
            tokens = await self._sharing.share(key, find)
        except Problem:
            self._metrics.found["nowhere"].inc()
            raise
        self._metrics.found[source].inc()
        return tokens
