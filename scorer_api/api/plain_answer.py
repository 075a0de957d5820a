"""Score answers put together from pieces: what says the same of several pods is encoded once.

head | pod's name | figures | pod's name | figures | … | tail          figures: of all pods that match equally far

The compiled core does the same with templates: the figures of a pod with holes for those that differ from one prompt to the next.
"""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from indexer.core.names import Trust
from indexer.http.negotiation import JSON, MSGPACK, Encode, encoder
from scorer_api.api.schemas import PodAnswer, ScoreAnswer, ViewAnswer
from scorer_api.index.plain_pods import PackedScores, PlainScores


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


def plain_answer(model: str, tokens: int, scores: PlainScores | PackedScores, limit: int | None, view: ViewAnswer, encode: Encode) -> bytes:
    """The encoded `ScoreAnswer` of these scores, as `encode` makes it of the objects. See `has_form`."""
    form, pods = _FORMS[encode], scores.pods
    names = pods.encoded.get(encode)
    if names is None:
        names = pods.encoded[encode] = [form.between + form.before_name + encode(name) for name in pods.names]
    count = len(names) if limit is None else min(limit, len(names))
    if isinstance(scores, PackedScores):
        shown = _packed_pods(scores, form, names, count, encode)
    else:
        shown = b"".join(_pieces(scores, form, names, count, encode))
    tail = form.before_view + encode(view) + form.behind_view
    # Without pods the list is one byte in msgpack, and two in JSON.
    empty = encode([])
    head = encode(ScoreAnswer(model, tokens, scores.best, [], view))[: -len(tail) - len(empty)]
    opening, closing = (empty[:1], empty[1:]) if len(empty) > 1 else (encode([0] * count)[:-count] if count else empty, b"")
    return b"".join((head, opening, shown, closing, tail))


def _pieces(scores: PlainScores, form: _Form, names: list[bytes], count: int, encode: Encode) -> list[bytes]:
    """What is said of the first `count` pods."""
    at_s, left = scores.at_s, count
    skipped = len(form.before_name) + len(encode(""))
    streams, ranks = scores.pods.streams, scores.pods.ranks
    pieces: list[bytes] = []
    for matched, score, numbers in scores.groups:
        figures: dict[tuple[Trust, int], bytes] = {}
        for number in numbers if len(numbers) <= left else numbers[:left]:
            said = streams[number].trust_at(at_s), ranks[number]
            piece = figures.get(said)
            if piece is None:
                piece = figures[said] = encode(_pod_answer(matched, score, scores.usable_blocks, scores.block_size, *said))[skipped:]
            pieces += (names[number], piece)
        left -= len(numbers)
        if left <= 0:
            break
    if pieces:
        pieces[0] = pieces[0][len(form.between) :]
    return pieces


# Numbers that stand for others in a template, and are in no answer.
_SCORE, _TOKENS, _BLOCKS, _USABLE = 0.9182736455463728, 2**63 + 1, 2**63 + 2, 2**63 + 3
# In the order of an answer. The last hole is missing where nothing matches.
_HOLES = (_SCORE, _TOKENS, _BLOCKS, _USABLE, _BLOCKS, _BLOCKS)
_KINDS = bytes((_SCORE, _TOKENS, _BLOCKS, _USABLE).index(hole) for hole in _HOLES)
_SCORE_BYTES = 9
"""Of a score in msgpack."""
Template = tuple[bytes, ...]


def _packed_pods(scores: PackedScores, form: _Form, names: list[bytes], count: int, encode: Encode) -> bytes:
    """The same as `_pieces`, put together by the compiled core."""
    pods, is_json = scores.pods, bool(form.between)
    templates = pods.templates.get(encode)
    if templates is None:
        templates = pods.templates[encode] = _templates(scores, form, encode)
    figures = encode(scores.scores)
    first = 1 if is_json else len(figures) - _SCORE_BYTES * len(scores.scores)
    skipped = len(form.between)
    return scores.matches.encoded(names, templates, _KINDS, figures, first, scores.block_size, scores.usable_blocks, count, skipped, is_json)


def _templates(scores: PackedScores, form: _Form, encode: Encode) -> list[tuple[Template, Template]]:
    """What is said of each pod, where something matches and where nothing does: the same object for pods of whom the same is said."""
    known: dict[tuple[Trust, int], tuple[Template, Template]] = {}
    skipped = len(form.before_name) + len(encode(""))
    found = []
    for said in zip(scores.trusts, scores.pods.ranks, strict=True):
        if said not in known:
            trust, rank = said
            matched = _pod_answer(_BLOCKS, _SCORE, _USABLE, scores.block_size, trust, rank, _TOKENS)
            unmatched = replace(matched, tiers={})
            known[said] = _cut(encode(matched)[skipped:], _HOLES, encode), _cut(encode(unmatched)[skipped:], _HOLES[:-1], encode)
        found.append(known[said])
    return found


def _cut(encoded: bytes, holes: Sequence[float], encode: Encode) -> Template:
    pieces = []
    for hole in holes:
        before, _, encoded = encoded.partition(encode(hole))
        pieces.append(before)
    return (*pieces, encoded)


def _pod_answer(matched: int, score: float, usable: int, size: int, trust: Trust, rank: int, tokens: int | None = None) -> PodAnswer:
    """Without a name."""
    tiers = {"gpu": matched} if matched else {}
    return PodAnswer("", score, matched * size if tokens is None else tokens, matched, usable, size, tiers, rank, {str(rank): matched}, trust)
