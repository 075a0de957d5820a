"""Score answers put together from pieces: what says the same of several pods is encoded once.

head | pod's name | figures | pod's name | figures | … | tail          figures: of all pods that match equally far
"""

from msgspec import Struct

from indexer.core.names import Trust
from indexer.http.negotiation import JSON, MSGPACK, Encode, encoder
from scorer_api.api.schemas import PodAnswer, ScoreAnswer, ViewAnswer
from scorer_api.index.plain_pods import PlainScores


class _Form(Struct, frozen=True):
    """How an encoding puts things together: what comes before a pod's name, between two pods, and before and behind the view."""

    before_name: bytes
    between: bytes
    before_view: bytes
    behind_view: bytes


_FORMS = {
    encoder(JSON): _Form(b'{"pod":', b",", b',"view":', b"}"),
    encoder(MSGPACK): _Form(b"\x8a\xa3pod", b"", b"\xa4view", b""),
}


def has_form(encode: Encode) -> bool:
    """Whether answers can be put together in this encoding."""
    return encode in _FORMS


def plain_answer(model: str, tokens: int, scores: PlainScores, limit: int | None, view: ViewAnswer, encode: Encode) -> bytes:
    """The encoded `ScoreAnswer` of these scores, as `encode` makes it of the objects. See `has_form`."""
    form, pods, at_s = _FORMS[encode], scores.pods, scores.at_s
    names = pods.encoded.get(encode)
    if names is None:
        names = pods.encoded[encode] = [form.between + form.before_name + encode(name) for name in pods.names]
    skipped = len(form.before_name) + len(encode(""))
    count = left = len(names) if limit is None else min(limit, len(names))
    streams, ranks = pods.streams, pods.ranks
    pieces: list[bytes] = []
    for matched, score, numbers in scores.groups:
        figures: dict[tuple[Trust, int], bytes] = {}
        for number in numbers if len(numbers) <= left else numbers[:left]:
            said = streams[number].trust_at(at_s), ranks[number]
            piece = figures.get(said)
            if piece is None:
                piece = figures[said] = encode(_pod_answer(matched, score, scores, *said))[skipped:]
            pieces += (names[number], piece)
        left -= len(numbers)
        if left <= 0:
            break
    tail = form.before_view + encode(view) + form.behind_view
    # Without pods the list is one byte in msgpack, and two in JSON.
    empty = encode([])
    head = encode(ScoreAnswer(model, tokens, scores.best, [], view))[: -len(tail) - len(empty)]
    opening, closing = (empty[:1], empty[1:]) if len(empty) > 1 else (encode([0] * count)[:-count] if count else empty, b"")
    if pieces:
        pieces[0] = pieces[0][len(form.between) :]
    return b"".join((head, opening, *pieces, closing, tail))


def _pod_answer(matched: int, score: float, scores: PlainScores, trust: Trust, rank: int) -> PodAnswer:
    """Without a name."""
    size, tiers = scores.block_size, {"gpu": matched} if matched else {}
    return PodAnswer("", score, matched * size, matched, scores.usable_blocks, size, tiers, rank, {str(rank): matched}, trust)
