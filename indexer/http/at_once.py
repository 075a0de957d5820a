"""Answers that are made where the last byte of a request is read: without a task, without ASGI.

    Connection ─▶ AtOnce.plain(url, headers)     whether a request may be answered so, by its head
               ─▶ Plain.answer(body)             the response, or None

That holds for the few routes that take most requests, and for requests with nothing special about them. Whatever else there is, and whatever is
wrong, the app gets whole: it decides everything again, and says what it is.
"""

from collections.abc import Callable, Mapping

from indexer.http.access import Access, Headers
from indexer.http.body_room import BodyRoom
from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.problems import Problem

Answer = Callable[[bytes, str, str], bytes | None]
"""Body, its media type, that of the response → the response's body; None, or Problem, where the app is to answer."""

# A longer body takes a millisecond or more: the app reads it in steps.
BODY_BYTES_MAX = 1_048_576
# Without white space or parameters, as nearly every client writes them.
_MEDIA_TYPES = {JSON.encode(): JSON, MSGPACK.encode(): MSGPACK, b"application/x-msgpack": MSGPACK, b"application/vnd.msgpack": MSGPACK}
_ACCEPTED = {**_MEDIA_TYPES, b"*/*": None}
# From the length of a response to its body.
_TAILS = {media_type: f"\r\ncontent-type: {media_type}\r\n\r\n".encode() for media_type in (JSON, MSGPACK)}
_SPECIAL = frozenset({b"content-encoding", b"transfer-encoding", b"upgrade", b"expect"})


class AtOnce:
    """`room`: for the bodies of all requests of the process."""

    def __init__(self, answers: Mapping[str, Answer], access: Access, body_bytes_max: int) -> None:
        """`answers`: by path."""
        self.room: BodyRoom = access.room
        self._answers = {path.encode(): answer for path, answer in answers.items()}
        self._admits = access.admits if access.needs_token else None
        self._body_bytes_max = min(body_bytes_max, BODY_BYTES_MAX)

    def plain(self, url: bytes, headers: Headers) -> "Plain | None":
        """A POST request that may be answered at once. `headers`: names in lower case."""
        answer = self._answers.get(url)
        if answer is None:
            return None
        media_type: str | None = None
        accepted: str | None = None
        size = b""
        for name, value in headers:
            if name == b"content-length":
                if size:
                    return None
                size = value
            elif name == b"content-type":
                if media_type is not None or (media_type := _MEDIA_TYPES.get(value)) is None:
                    return None
            elif name == b"accept":
                if accepted is not None or value not in _ACCEPTED:
                    return None
                accepted = _ACCEPTED[value] or ""
            elif name in _SPECIAL:
                return None
        if media_type is None or not size.isdigit() or int(size) > self._body_bytes_max:
            return None
        if self._admits is not None and not self._admits(headers):
            return None
        return Plain(answer, media_type, accepted or media_type, self.room)


class Plain:
    """A request whose body is being read. The pieces that have come count in the room for bodies until it is closed."""

    __slots__ = ("_answer", "_held", "_room", "accepted", "media_type", "pieces")

    def __init__(self, answer: Answer, media_type: str, accepted: str, room: BodyRoom) -> None:
        self._answer, self.media_type, self.accepted, self._room = answer, media_type, accepted, room
        self._held = 0
        self.pieces: list[bytes] = []

    @property
    def tail(self) -> bytes:
        """What is between the length of a response and its body."""
        return _TAILS[self.accepted]

    def add(self, piece: bytes) -> bool:
        """Returns whether there is room for more: the piece is kept anyway."""
        self.pieces.append(piece)
        self._held += len(piece)
        self._room.bytes_left -= len(piece)
        return self._room.bytes_left >= 0

    def close(self) -> None:
        """Give the room back."""
        self._room.bytes_left += self._held
        self._held = 0

    def answer(self) -> bytes | None:
        """The response's body; None where the app is to answer."""
        pieces = self.pieces
        try:
            return self._answer(pieces[0] if len(pieces) == 1 else b"".join(pieces), self.media_type, self.accepted)
        except Problem:
            return None
