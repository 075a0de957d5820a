"""One call of a gateway, which is one HTTP request and its response, as a state machine without I/O: messages in, messages and a question out.

    headers ─▶ body, collected ─▶ the question ─▶ pick ─▶ body, sent on ─▶ response headers ─▶ response body ─▶ over
                     └ over the limit: asked at once, and what follows is passed on as it comes

Where a gateway sends bodies in full duplex, it goes on with the headers and pieces of the body that it gets back, and with nothing else. One that
buffers bodies may leave out the headers: then the body comes first, with attributes in place of headers, and the pick goes back in metadata.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Protocol

from msgspec import Struct

from indexer.http.body_room import BodyRoom
from scorer_api.gateway import messages
from scorer_api.gateway.messages import (
    BodyMode,
    BodyModes,
    Mutation,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from scorer_api.gateway.usage import Tail

# Envoy takes messages of 64 kB in full duplex, with the fields around the piece.
PIECE_BYTES = 62_000
RETRY_AFTER_S = 1


class Question(Struct, frozen=True):
    """Which pod is this request to go to? `body`: None where there is none, and where `is_cut`: it exceeds the limit.

    `subset`: the endpoints to choose from, None for all.
    """

    headers: Mapping[str, str]
    body: bytes | None
    is_cut: bool
    subset: tuple[str, ...] | None


class RefusedError(Exception):
    """The request cannot be asked about. `status`: for the client. `retry_after_s`: when to try again."""

    def __init__(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s


class _Phase(Enum):
    HEADERS = "nothing came yet"
    COLLECTING = "the body is collected"
    ASKING = "the pick is waited for"
    PASSING = "pieces of the body are passed on"
    SENT = "all of the request went on"
    REFUSED = "the client was answered in place of a pod"


class Exchange:
    """`is_over`: the response has ended, or it has begun and no more of it will be shown. `served`, `status`: of the response, None if unknown."""

    def __init__(self, room: BodyRoom, body_bytes_max: int) -> None:
        self._room = room
        self._body_bytes_max = body_bytes_max
        self._phase = _Phase.HEADERS
        self._headers: Mapping[str, str] = {}
        self._subset: tuple[str, ...] | None = None
        self._modes: BodyModes | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_whole = False
        self._has_body = False
        self._has_headers = False
        self._has_trailers = False
        self._question: Question | None = None
        self._tail: Tail | None = None
        self.has_response = False
        self.is_over = False
        self.served: str | None = None
        self.status: str | None = None
        self.pieces_echoed = 0

    @property
    def tells_the_end(self) -> bool:
        """Whether the end of the call is that of the request: some gateways end it as soon as they have the pick."""
        return self.has_response or self._modes is not None

    @property
    def is_refused(self) -> bool:
        """Whether the client was answered in place of a pod."""
        return self._phase is _Phase.REFUSED

    def receive(self, data: bytes) -> Iterable[bytes]:
        """What to send after this message. Raises MalformedError, RefusedError."""
        if self._phase is _Phase.REFUSED:
            return ()
        match messages.read_message(data):
            case RequestHeaders() as headers:
                return self._on_headers(headers)
            case RequestBody(body, is_end, opening):
                if self._phase is _Phase.HEADERS:
                    self._open_with(opening)
                return self._on_body(body, is_end=is_end)
            case RequestTrailers():
                return self._on_trailers()
            case ResponseHeaders() as headers:
                return self._on_response_headers(headers)
            case ResponseBody(body, is_end):
                return self._on_response_body(body, is_end=is_end)
            case ResponseTrailers():
                self.has_response = self.is_over = True
                return (messages.RESPONSE_TRAILERS_DONE,)
        return ()

    def take_question(self) -> Question | None:
        """What is to be asked now, once. Then `picked` or `refused` has the answer."""
        question, self._question = self._question, None
        return question

    def picked(self, mutation: Mutation, body: bytes | None = None) -> Iterator[bytes]:
        """What to send, in this order. `body`: in place of the one that came, None to leave it."""
        assert self._phase is _Phase.ASKING, "the answer to a question"
        if self._has_body and self._request_mode == BodyMode.BUFFERED:
            self._phase = _Phase.SENT
            if self._has_headers:
                yield messages.pick_in_body(mutation if body is None else self._with_length(mutation, body), body)
            else:
                yield messages.pick_in_metadata(mutation, body)
        else:
            yield from self._in_full_duplex(mutation, body)
        self._release()

    def refused(self, status: int, body: bytes, headers: Sequence[tuple[str, str]], details: str) -> bytes:
        """What to send in place of a pick."""
        self._phase = _Phase.REFUSED
        self._release()
        return messages.immediate_response(status, body, headers, details)

    def close(self) -> None:
        """The call has ended."""
        self._release()

    def cached_tokens(self) -> int | None:
        """How many tokens of the prompt the engine took from its cache, as far as the response said so."""
        return None if self._tail is None else self._tail.cached_tokens()

    # The request

    @property
    def _request_mode(self) -> int:
        """A gateway that does not say sends one body, and goes on with what it gets back."""
        return BodyMode.FULL_DUPLEX if self._modes is None else self._modes.request

    def _on_headers(self, message: RequestHeaders) -> Iterable[bytes]:
        if self._phase is not _Phase.HEADERS:
            return ()
        self._has_headers = True
        self._headers, self._modes, self._subset = message.headers, message.modes, message.subset
        mode = self._request_mode
        if message.is_end or mode == BodyMode.NONE:
            return self._ask(None, is_whole=True)
        self._phase = _Phase.COLLECTING
        if mode == BodyMode.FULL_DUPLEX:
            return ()
        if mode == BodyMode.BUFFERED:
            return (messages.HEADERS_DONE,)
        raise RefusedError(500, "the gateway's processing mode of request bodies should be FULL_DUPLEX_STREAMED or BUFFERED")

    def _open_with(self, opening: RequestHeaders | None) -> None:
        """Begin a call without headers. Raises RefusedError."""
        if opening is not None:
            self._headers, self._modes, self._subset = opening.headers, opening.modes, opening.subset
        self._modes = self._modes or BodyModes(BodyMode.BUFFERED, BodyMode.NONE)
        if self._modes.request != BodyMode.BUFFERED:
            raise RefusedError(500, "without request headers the gateway's processing mode of request bodies should be BUFFERED")
        self._phase = _Phase.COLLECTING

    def _on_body(self, body: memoryview, *, is_end: bool) -> Iterable[bytes]:
        if self._phase is _Phase.PASSING:
            if is_end:
                self._phase = _Phase.SENT
            return _pieces_of(body, messages.request_piece, is_end=is_end)
        if self._phase is not _Phase.COLLECTING:
            return ()  # Envoy may repeat the last piece of a long body
        self._has_body = True
        self._collect(body)
        if self._size > self._body_bytes_max:
            return self._ask(None, is_whole=is_end, is_cut=True)
        if is_end or self._request_mode == BodyMode.BUFFERED:
            return self._ask(self._joined(), is_whole=True)
        return ()

    def _on_trailers(self) -> Iterable[bytes]:
        if self._phase is _Phase.COLLECTING and self._request_mode == BodyMode.FULL_DUPLEX:
            self._has_trailers = True
            return self._ask(self._joined(), is_whole=True)
        self._phase = _Phase.SENT
        return (messages.TRAILERS_DONE,)

    def _collect(self, body: memoryview) -> None:
        """Raises RefusedError where all calls together have no room for it."""
        if len(body) > self._room.bytes_left:
            raise RefusedError(429, "the bodies of too many requests wait for a pick; try again", RETRY_AFTER_S)
        self._room.bytes_left -= len(body)
        self._size += len(body)
        if body:
            self._pieces.append(bytes(body))

    def _joined(self) -> bytes:
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    def _ask(self, body: bytes | None, *, is_whole: bool, is_cut: bool = False) -> Iterable[bytes]:
        self._phase = _Phase.ASKING
        self._is_whole = is_whole
        self._question = Question(self._headers, body, is_cut, self._subset)
        return ()

    def _in_full_duplex(self, mutation: Mutation, body: bytes | None) -> Iterator[bytes]:
        """The pick, and the body as far as it came."""
        whole = self._joined() if body is None else body
        is_end = self._is_whole and not self._has_trailers
        self._phase = _Phase.SENT if self._is_whole else _Phase.PASSING
        yield messages.pick_in_headers(self._with_length(mutation, whole) if self._has_body and is_end else mutation)
        if self._has_body:
            yield from _pieces_of(memoryview(whole), messages.request_piece, is_end=is_end)
        if self._has_trailers:
            yield messages.TRAILERS_DONE

    def _with_length(self, mutation: Mutation, body: bytes) -> Mutation:
        """The mutation with the body's length, if the client gave one. Envoy sends bodies in chunks all the same in full duplex, others need not."""
        if "content-length" not in self._headers:
            return mutation
        return Mutation(mutation.destination, (*mutation.headers, ("content-length", str(len(body)))), mutation.removed)

    def _release(self) -> None:
        self._room.bytes_left += self._size
        self._size = 0
        self._pieces = []

    # The response

    def _on_response_headers(self, message: ResponseHeaders) -> Iterable[bytes]:
        self.has_response = True
        self.served = message.served
        self.status = message.headers.get(":status")
        self._modes = self._modes or message.modes
        has_body = not message.is_end and self._modes is not None and self._modes.response != BodyMode.NONE
        self.is_over = not has_body
        if has_body and self.status == "200" and message.headers.get("content-encoding", "identity") == "identity":
            self._tail = Tail()
        return (messages.RESPONSE_HEADERS_DONE,)

    def _on_response_body(self, body: memoryview, *, is_end: bool) -> Iterable[bytes]:
        self.has_response = True
        if self._tail is not None:
            self._tail.add(body)
        if is_end:
            self.is_over = True
        if self._modes is not None and self._modes.response != BodyMode.FULL_DUPLEX:
            return (messages.RESPONSE_BODY_DONE,)
        self.pieces_echoed += 1
        return _pieces_of(body, messages.response_piece, is_end=is_end)


def _pieces_of(body: memoryview, write: "_WritePiece", *, is_end: bool) -> Iterator[bytes]:
    """The body in pieces that a gateway takes; one empty piece of an empty body."""
    for start in range(0, len(body) or 1, PIECE_BYTES):
        stop = start + PIECE_BYTES
        yield write(body[start:stop], is_end=is_end and stop >= len(body))


class _WritePiece(Protocol):
    def __call__(self, body: memoryview, *, is_end: bool) -> bytes: ...
