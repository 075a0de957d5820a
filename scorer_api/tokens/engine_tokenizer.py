"""Asking live engines for tokens: `POST /tokenize`, on one pod of the model and, where that fails, on another."""

import asyncio
import logging
import os
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Protocol, Self

import httpx
import msgspec
from msgspec import Meta, Struct

from indexer.config.auth_tokens import read_tokens
from indexer.config.settings import Settings
from indexer.core.block_keys import TOKEN_MAX, pack_tokens
from indexer.core.names import Trust
from indexer.engines.api import EngineApi
from indexer.engines.client import EngineClient, read_body
from indexer.errors import IndexerError, SettingError
from indexer.http.problems import Problem
from indexer.masking import masked
from scorer_api.index.view import View
from scorer_api.metrics import TokenMetrics
from scorer_api.tokens.tokenize_input import TokenizeInput

log = logging.getLogger(__name__)

# One pod, and another one where that fails.
PODS_TRIED = 2
# A pod that failed is asked after the others for so long.
AFTER_FAILURE_S = 5.0
# How much of an engine's refusal is repeated to whoever asked.
REFUSAL_BYTES_MAX = 2_048
REFUSAL_LENGTH_MAX = 300
# The engine refuses the text itself: so would any other.
REFUSALS = (400, 422)


class Apis(Protocol):
    """Where the pods' own APIs are."""

    def api(self, pod: str, model: str) -> EngineApi: ...


class _Answer(Struct):
    tokens: list[Annotated[int, Meta(ge=0, le=TOKEN_MAX)]]
    count: int | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class _Failed(IndexerError):
    """A pod gave no tokens. `outcome`: as it is counted; `why`: in words."""

    def __init__(self, outcome: str, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome
        self.why = why


class EngineKey:
    """The key that engines want, from a file that may be replaced while it is in use. Raises SettingError for one that cannot be used."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._key = read_tokens(path, "--engine-api-key-file")[0]
        self._seen = self._look()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino

    def header(self) -> dict[str, str]:
        """For a request to an engine."""
        if (seen := self._look()) != self._seen:
            self._seen = seen
            try:
                self._key = read_tokens(self._path, "--engine-api-key-file")[0]
            except SettingError as error:
                log.error("engines' key not read again", extra={"error": str(error)})
        return {"Authorization": f"Bearer {self._key}"}


class EngineTokenizer:
    """`async with EngineTokenizer(…) as engines:` keeps connections to them. Raises SettingError for a key that cannot be used."""

    def __init__(self, settings: Settings, view: View, apis: Apis, metrics: TokenMetrics) -> None:
        self._settings = settings
        self._client = EngineClient(settings.engine_networks)
        self._view = view
        self._apis = apis
        self._metrics = metrics
        self._key = None if settings.engine_api_key_file is None else EngineKey(settings.engine_api_key_file)
        self._failed_until_s: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def tokens(self, model: str, tokenize_input: TokenizeInput, request: bytes) -> bytes:
        """The packed tokens. `model`: whose pods to ask; `request`: the body of the question.

        Raises Problem: 502 that names what was tried, 422 where the engines refuse the text itself.
        """
        failures: list[tuple[str, _Failed]] = []
        for pod in self._order(model):
            began_s = time.perf_counter()
            try:
                tokens = await self._ask(self._apis.api(pod, model), request)
            except _Failed as failed:
                self._metrics.requests[failed.outcome].inc()
                failures.append((pod, failed))
                if failed.outcome != "refused":
                    self._failed_until_s[pod] = time.monotonic() + AFTER_FAILURE_S
            else:
                self._metrics.requests["tokens"].inc()
                self._metrics.seconds.observe(time.perf_counter() - began_s)
                self._failed_until_s.pop(pod, None)
                return tokens
        raise _problem(model, tokenize_input, failures)

    def _order(self, model: str) -> list[str]:
        """The pods to try: those that can be relied on before those that may be away, those that just failed last, else at random."""
        now_s = time.monotonic()
        self._failed_until_s = {pod: until_s for pod, until_s in self._failed_until_s.items() if until_s > now_s}
        pods = [(pod, trust) for pod, trust in self._view.trusts(model).items() if trust is not Trust.EXPIRED]
        random.shuffle(pods)
        pods.sort(key=lambda each: (each[0] in self._failed_until_s, each[1] is Trust.STALE))
        return [pod for pod, _ in pods[:PODS_TRIED]]

    async def _ask(self, api: EngineApi, request: bytes) -> bytes:
        """Raises _Failed."""
        timeout_s = self._settings.limits.tokenize.tokenize_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                content = await self._answer(api, request)
        except TimeoutError:
            raise _Failed("timeout", f"did not answer within {timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _Failed("unreachable", f"cannot be reached: {masked(str(error)) or type(error).__name__}") from None
        except SettingError as error:
            raise _Failed("outside", error.allowed) from None
        try:
            answer = _decode(content)
        except msgspec.ValidationError as error:
            raise _Failed("malformed", f"answered with other than tokens: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _Failed("malformed", "answered with what is not JSON") from None
        if answer.count is not None and answer.count != len(answer.tokens):
            raise _Failed("malformed", f"answered with {len(answer.tokens)} tokens and says that they are {answer.count}")
        return pack_tokens(answer.tokens)

    async def _answer(self, api: EngineApi, request: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", **({} if self._key is None else self._key.header())}
        async with self._client.ask(api, "/tokenize", headers, request) as response:
            if response.status_code != 200:
                raise await _refusal(response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _Failed("malformed", "answered in an encoding that was not asked for")
            content = await read_body(response, self._settings.limits.tokenize.tokenize_answer_bytes_max)
            if content is None:
                raise _Failed("too_large", f"answered with more than {self._settings.limits.tokenize.tokenize_answer_bytes_max} bytes")
            return content


async def _refusal(response: httpx.Response) -> _Failed:
    content = await read_body(response, REFUSAL_BYTES_MAX)
    said = "" if content is None else _message(content)
    outcome = "refused" if response.status_code in REFUSALS else "status"
    return _Failed(outcome, f"answered {response.status_code}" + (f": {said}" if said else ""))


def _message(content: bytes) -> str:
    """What an engine says is wrong, in the forms that engines have for it."""
    try:
        said = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    for keys in (("error", "message"), ("message",), ("detail",), ("error",)):
        found = said
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, str):
            return " ".join(found.split())[:REFUSAL_LENGTH_MAX]
    return ""


def _problem(model: str, tokenize_input: TokenizeInput, failures: Sequence[tuple[str, _Failed]]) -> Problem:
    if not failures:
        return Problem(502, f"{tokenize_input.source}: no pod of {model!r} is live that could tokenize it; send token_ids, or see --tokenizer")
    tried = "; ".join(f"{pod} {failed.why}" for pod, failed in failures)
    if all(failed.outcome == "refused" for _, failed in failures):
        return Problem(422, f"{tokenize_input.source}: the engine refuses it: {tried}")
    return Problem(502, f"{tokenize_input.source}: no engine tokenized it: {tried}; send token_ids, or see --tokenizer")
