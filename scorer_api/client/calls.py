"""The requests of both clients and how responses are decoded; nothing here does I/O."""

import ssl
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from os import PathLike, fspath
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import urlencode

import httpx
import msgspec
from msgspec import Struct

from scorer_api.client.errors import NoAnswerError, ProblemError, StrangeAnswerError
from scorer_api.client.responses import DoneAnswer, ExplainAnswer, HotAnswer, PodsAnswer, Problem, RouteAnswer, ScoreAnswer

A = TypeVar("A")
MSGPACK = "application/msgpack"
JSON = "application/json"

Tokens = Iterable[int] | bytes
"""Token ids: a list, an `array('I')`, a numpy array or any buffer of integers; or bytes: little-endian uint32."""


class Asked(TypedDict, total=False):
    """The optional fields of a request; None is the same as leaving it out. Exactly one source of tokens per request."""

    prompt: str | None
    messages: Sequence[dict[str, Any]] | None
    tools: Sequence[dict[str, Any]] | None
    chat_template_kwargs: dict[str, Any] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    documents: Sequence[dict[str, Any]] | None
    reasoning_effort: str | None
    chat_template: str | None
    mm_processor_kwargs: dict[str, Any] | None
    block_hashes: Sequence[int | bytes] | None
    pods: Sequence[str] | None
    lora_name: str | None
    cache_salt: str | None
    block_extra_keys: Sequence[tuple[int, list[Any]]] | None
    limit: int | None
    include_speculative: bool | None


class RouteAsked(Asked, total=False):
    """The optional fields of a request to route."""

    session_id: str | None
    exclude: Sequence[str] | None
    output_tokens_expected: int | None
    policy: str | None


class Call(Struct, Generic[A], frozen=True):
    """One request. `content`: its body, None for a GET."""

    path: str
    content: bytes | None
    decode: Callable[[bytes], A]

    @property
    def method(self) -> str:
        return "GET" if self.content is None else "POST"


_decode_score = msgspec.msgpack.Decoder(ScoreAnswer).decode
_decode_explain = msgspec.msgpack.Decoder(ExplainAnswer).decode
_decode_route = msgspec.msgpack.Decoder(RouteAnswer).decode
_decode_done = msgspec.msgpack.Decoder(DoneAnswer).decode
_decode_pods = msgspec.json.Decoder(PodsAnswer).decode
_decode_hot = msgspec.json.Decoder(HotAnswer).decode
_decode_problem = msgspec.json.Decoder(Problem).decode
PODS = Call("/v1/pods", None, _decode_pods)
METRICS = Call("/metrics", None, bytes.decode)


def score_call(model: str, token_ids: Tokens | None, asked: Asked) -> Call[ScoreAnswer]:
    """Raises ValueError for what cannot be sent."""
    return Call("/v1/score", _body(model, token_ids, asked), _decode_score)


def explain_call(model: str, token_ids: Tokens | None, asked: Asked) -> Call[ExplainAnswer]:
    """Raises ValueError for what cannot be sent."""
    return Call("/v1/explain", _body(model, token_ids, asked), _decode_explain)


def route_call(model: str, token_ids: Tokens | None, asked: RouteAsked) -> Call[RouteAnswer]:
    """Raises ValueError for what cannot be sent."""
    return Call("/v1/route", _body(model, token_ids, asked), _decode_route)


def done_call(name: str) -> Call[DoneAnswer]:
    """`name`: the id of a routed request."""
    return Call("/v1/route/done", msgspec.msgpack.encode({"id": name}), _decode_done)


def hot_call(model: str | None, limit: int | None) -> Call[HotAnswer]:
    """The hottest prefixes, of this model or of all."""
    given = {key: str(value) for key, value in (("model", model), ("limit", limit)) if value is not None}
    return Call("/v1/hot" + (f"?{urlencode(given)}" if given else ""), None, _decode_hot)


def _body(model: str, token_ids: Tokens | None, asked: Asked | RouteAsked) -> bytes:
    body = {"model": model, **{key: value for key, value in asked.items() if value is not None}}
    if token_ids is not None:
        body["token_ids"] = packed(token_ids)
    try:
        return msgspec.msgpack.encode(body)
    except (TypeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"the request cannot be written as msgpack: {error}") from None


def packed(token_ids: Tokens) -> bytes:
    """Token ids as little-endian uint32. Bytes are taken to be that already. Raises ValueError."""
    try:
        view = memoryview(token_ids)  # type: ignore[arg-type]  # raises TypeError for what has no buffer protocol
    except TypeError:
        return _packed(token_ids)
    if isinstance(token_ids, bytes | bytearray | memoryview) and view.format == "B":
        return view.tobytes()
    items = _items(view)
    return _written(items) if items.typecode == "I" else _packed(items)


def _items(view: memoryview) -> "array[int]":
    """The integers of a one-dimensional buffer, in the machine's byte order. Raises ValueError for any other buffer."""
    order, code = view.format[:-1], view.format[-1:]
    if view.ndim != 1 or code not in "bBhHiIlLqQnN" or order not in ("", "@", "=", "<", ">", "!"):
        raise ValueError(f"token_ids: an array of {view.ndim} dimensions and format {view.format!r}; it should have one, and hold integers")
    of_size = {1: "b", 2: "h", 4: "i", 8: "q"}[view.itemsize]
    items = array(of_size if code.islower() else of_size.upper(), view.tobytes())
    if (sys.byteorder == "little" and order in (">", "!")) or (sys.byteorder == "big" and order == "<"):
        items.byteswap()
    return items


def _packed(token_ids: Iterable[int]) -> bytes:
    try:
        items = array("I", token_ids)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"token_ids: {error}; they should be integers from 0 to 2^32 - 1") from None
    return _written(items)


def _written(items: "array[int]") -> bytes:
    if sys.byteorder == "big":
        items.byteswap()
    return items.tobytes()


class Service(Struct, frozen=True):
    """The address of the service, and the headers that it expects."""

    url: str
    shown_url: str
    token: str | Callable[[], str] | None

    @classmethod
    def at(cls, url: str, token: str | Callable[[], str] | None) -> "Service":
        """Raises ValueError for a URL that is none of http or https."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"url: {error}; it should be http://host:port or https://host:port") from None
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError("url: it should be http://host:port or https://host:port")
        # httpx.URL writes no user and password only where they are taken out.
        shown = str(parsed.copy_with(userinfo=b"", query=None, fragment=None))
        return cls(url.rstrip("/"), shown.rstrip("/"), token)

    def headers(self, call: Call[Any]) -> dict[str, str]:
        """Raises ValueError for a token that cannot be sent."""
        headers = {"Accept": JSON} if call.content is None else {"Content-Type": MSGPACK, "Accept": MSGPACK}
        token = self.token() if callable(self.token) else self.token
        if token is not None:
            if not token.isascii() or not token.isprintable() or not token or " " in token:
                raise ValueError("token: it should be of visible ASCII characters, without white space")
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def read(self, call: Call[A], response: httpx.Response) -> A:
        """The answer. Raises ProblemError, StrangeAnswerError."""
        if response.status_code != 200:
            raise self._problem(response)
        try:
            return call.decode(response.content)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise StrangeAnswerError(self.shown_url, 200) from None

    def _problem(self, response: httpx.Response) -> ProblemError | StrangeAnswerError:
        try:
            problem = _decode_problem(response.content)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return StrangeAnswerError(self.shown_url, response.status_code)
        return ProblemError(response.status_code, problem.title, problem.detail, retry_after_s(response))

    def no_answer(self, error: Exception) -> NoAnswerError:
        """An error of httpx as an error of this client."""
        took_too_long = isinstance(error, httpx.TimeoutException)
        return NoAnswerError(self.shown_url, str(error) or ("it took too long" if took_too_long else type(error).__name__))


def retry_after_s(response: httpx.Response) -> float | None:
    """The seconds of a Retry-After header, or None. Dates are not parsed: this service sends none."""
    said = response.headers.get("Retry-After", "")
    return float(said) if said.isascii() and said.isdecimal() and len(said) < 10 else None


@cache
def _authorities_of_the_system() -> ssl.SSLContext:
    """Reading them takes a tenth of a second: all clients of a process share them."""
    return ssl.create_default_context()


def trusted(verify: bool | ssl.SSLContext, ca_file: str | PathLike[str] | None) -> bool | ssl.SSLContext:
    """The `verify` argument of httpx, whose own default is another list of authorities. Raises ValueError for a file that holds no certificates."""
    if ca_file is None:
        return _authorities_of_the_system() if verify is True else verify
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca_file: {fspath(ca_file)!r} cannot be used: {error}; it should hold certificates in PEM form") from None
