"""Asks live engines for tokens: `POST /tokenize` on one pod of the model and, if that fails, on another.

Of a chat with images `/tokenize` says where they are by their placeholder tokens, but not which images they are. `POST /v1/chat/completions/render`,
which newer vLLM has, says both, so it is asked first.
"""

import logging
import random
import time
from collections.abc import Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Annotated, Protocol, Self

import msgspec
from msgspec import Meta, Struct

from indexer.config.engine_key import EngineKey
from indexer.config.settings import Settings
from indexer.core.block_keys import TOKEN_BYTES, TOKEN_MAX, pack_tokens
from indexer.core.names import Trust
from indexer.engines.api import EngineApi
from indexer.engines.client import EngineClient
from indexer.engines.http_client import Answer, FetchError
from indexer.errors import IndexerError
from indexer.http.negotiation import JSON
from indexer.http.problems import Problem
from indexer.tracing.current import active_tracer
from scorer_api.index.prompt import Placeholder
from scorer_api.index.view import View
from scorer_api.metrics import TokenMetrics
from scorer_api.tokens.token_lists import take_tokens
from scorer_api.tokens.tokenize_input import TokenizedInput, TokenizeInput

log = logging.getLogger(__name__)

# One pod, and another one if that fails.
PODS_TRIED = 2
# For so long a pod that failed is asked after the others.
AFTER_FAILURE_S = 5.0
TOKENIZE, RENDER = "/tokenize", "/v1/chat/completions/render"
# For so long a pod that did not render a chat is not asked to.
AFTER_NO_RENDER_S = 30.0
# How much of an engine's refusal is repeated to the client.
REFUSAL_BYTES_MAX = 2_048
REFUSAL_LENGTH_MAX = 300
IDENTIFIER_LENGTH_MAX = 4_096
# The engine rejects the text itself, as any other engine would.
REFUSALS = (400, 422)


class Apis(Protocol):
    """Where the pods' own APIs are."""

    def api(self, pod: str, model: str) -> EngineApi: ...


class _Tokenized(Struct):
    tokens: list[Annotated[int, Meta(ge=0, le=TOKEN_MAX)]]
    count: int | None = None


_decode = msgspec.json.Decoder(_Tokenized).decode


class _Range(Struct):
    offset: Annotated[int, Meta(ge=0, le=TOKEN_MAX)]
    length: Annotated[int, Meta(ge=1, le=TOKEN_MAX)]


class _Features(Struct):
    mm_hashes: dict[str, list[Annotated[str, Meta(min_length=1, max_length=IDENTIFIER_LENGTH_MAX)]]] = {}
    mm_placeholders: dict[str, list[_Range]] = {}


class _Rendered(Struct):
    token_ids: list[Annotated[int, Meta(ge=0, le=TOKEN_MAX)]]
    features: _Features | None = None


_decode_rendered = msgspec.json.Decoder(_Rendered).decode


def tokenized(answer: bytes) -> TokenizedInput:
    """What a rendered chat consists of. Raises ValueError for an answer that is not one, or whose media lie outside of its tokens."""
    try:
        rendered = _decode_rendered(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no rendered chat: {error}") from None
    features = rendered.features or _Features()
    media: list[Placeholder] = []
    for kind, hashes in features.mm_hashes.items():
        ranges = features.mm_placeholders.get(kind, [])
        if len(ranges) != len(hashes):
            raise ValueError(f"{len(hashes)} hashes and {len(ranges)} placeholders of {kind}")
        media += [Placeholder(identifier, place.offset, place.length) for identifier, place in zip(hashes, ranges, strict=True)]
    if any(each.offset + each.length > len(rendered.token_ids) for each in media):
        raise ValueError(f"a placeholder ends beyond the {len(rendered.token_ids)} tokens")
    return TokenizedInput(pack_tokens(rendered.token_ids), tuple(media))


class _TokenizeError(IndexerError):
    """A pod returned no tokens. `outcome`: as it is counted; `why`: in words."""

    def __init__(self, outcome: str, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome
        self.why = why


class EngineTokenizer:
    """`async with EngineTokenizer(…) as engines:` keeps connections to them. Raises SettingError for a key that cannot be used."""

    def __init__(self, settings: Settings, view: View, apis: Apis, metrics: TokenMetrics) -> None:
        self._settings = settings
        self._client = EngineClient(settings.engine_networks)
        self._view = view
        self._apis = apis
        self._metrics = metrics
        self._key = EngineKey.of(settings)
        self._failed_until_s: dict[str, float] = {}
        self._unrendered_until_s: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def tokens(self, model: str, tokenize_input: TokenizeInput, body: bytes) -> TokenizedInput:
        """The tokens. `model`: whose pods to ask; `body`: of the request, see `TokenizeInput.request`.

        Raises Problem: 502 with the pods that were tried, 422 if the engines reject the text itself.
        """
        failures: list[tuple[str, _TokenizeError]] = []
        for pod in self._order(model):
            began_s = time.perf_counter()
            try:
                api = self._apis.api(pod, model)
                tokens = (await self._render(api, body) if tokenize_input.has_media else None) or TokenizedInput(await self._ask(api, body))
            except _TokenizeError as failed:
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
        """The pods to try: stale ones after others, ones that failed lately last, otherwise at random."""
        now_s = time.monotonic()
        self._failed_until_s = {pod: until_s for pod, until_s in self._failed_until_s.items() if until_s > now_s}
        self._unrendered_until_s = {pod: until_s for pod, until_s in self._unrendered_until_s.items() if until_s > now_s}
        pods = [(pod, trust) for pod, trust in self._view.trusts(model).items() if trust is not Trust.EXPIRED]
        random.shuffle(pods)
        pods.sort(key=lambda each: (each[0] in self._failed_until_s, each[1] is Trust.STALE))
        return [pod for pod, _ in pods[:PODS_TRIED]]

    async def _render(self, api: EngineApi, body: bytes) -> TokenizedInput | None:
        """The tokens of a chat with media; None if the pod does not say what the media are."""
        if self._unrendered_until_s.get(api.pod, 0.0) > time.monotonic():
            return None
        try:
            return tokenized(await self._answer(api, RENDER, body))
        except (_TokenizeError, ValueError) as error:
            log.info("chat with images not rendered", extra={"pod": api.pod, "error": str(error)})
            self._unrendered_until_s[api.pod] = time.monotonic() + AFTER_NO_RENDER_S
            return None

    async def _ask(self, api: EngineApi, body: bytes) -> bytes:
        """Raises _TokenizeError."""
        content = await self._answer(api, TOKENIZE, body)
        taken = await take_tokens(content, "tokens", JSON)
        try:
            answer = _decode(content if taken is None else taken.body)
            if taken is not None and answer.tokens:
                taken, answer = None, _decode(content)  # it was the key of another object
        except msgspec.ValidationError as error:
            raise _TokenizeError("malformed", f"answered with other than tokens: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _TokenizeError("malformed", "answered with what is not JSON") from None
        tokens = pack_tokens(answer.tokens) if taken is None else taken.tokens
        if answer.count is not None and answer.count != len(tokens) // TOKEN_BYTES:
            raise _TokenizeError("malformed", f"answered with {len(tokens) // TOKEN_BYTES} tokens and says that they are {answer.count}")
        return tokens

    async def _answer(self, api: EngineApi, path: str, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", **({} if self._key is None else self._key.header())}
        tracer = active_tracer()
        if tracer is None:
            return await self._fetch(api, path, headers, body)
        with tracer.call(f"POST {path}", {"http.request.method": "POST", "url.path": path, "kv.pod": api.pod}) as span:
            return await self._fetch(api, path, headers | span.headers(), body)

    async def _fetch(self, api: EngineApi, path: str, headers: dict[str, str], body: bytes) -> bytes:
        """Raises _TokenizeError."""
        limits = self._settings.limits.tokenize
        timeout_s, bytes_max = limits.tokenize_timeout_s, limits.tokenize_answer_bytes_max
        try:
            answer = await self._client.fetch(
                api, path, headers=headers, content=body, timeout_s=timeout_s, bytes_max=bytes_max, error_bytes_max=REFUSAL_BYTES_MAX
            )
        except FetchError as error:
            why = {"timeout": f"did not answer within {timeout_s:g} s", "unreachable": f"cannot be reached: {error.why}"}.get(
                error.outcome, error.why
            )
            raise _TokenizeError(error.outcome, why) from None
        if answer.status != HTTPStatus.OK:
            raise _refusal(answer)
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise _TokenizeError("malformed", "answered in an encoding that was not asked for")
        if answer.is_cut:
            raise _TokenizeError("too_large", f"answered with more than {bytes_max} bytes")
        return answer.body


def _refusal(answer: Answer) -> _TokenizeError:
    message = "" if answer.is_cut else _message(answer.body)
    outcome = "refused" if answer.status in REFUSALS else "status"
    return _TokenizeError(outcome, f"answered {answer.status}" + (f": {message}" if message else ""))


def _message(content: bytes) -> str:
    """The message of an engine's error, in any of the forms that engines use."""
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


def _problem(model: str, tokenize_input: TokenizeInput, failures: Sequence[tuple[str, _TokenizeError]]) -> Problem:
    if not failures:
        return Problem(502, f"{tokenize_input.source}: no pod of {model!r} is live that could tokenize it; send token_ids, or see --tokenizer")
    tried = "; ".join(f"{pod} {failed.why}" for pod, failed in failures)
    if all(failed.outcome == "refused" for _, failed in failures):
        return Problem(422, f"{tokenize_input.source}: the engine refuses it: {tried}")
    return Problem(502, f"{tokenize_input.source}: no engine tokenized it: {tried}; send token_ids, or see --tokenizer")
