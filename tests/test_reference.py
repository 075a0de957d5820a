"""Whatever engines do, the index answers what a naive model of them answers."""

import ast
import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from hypothesis import event, given, settings
from hypothesis import strategies as st

from indexer.config.settings import Settings
from indexer.core.block_keys import fold_extra_keys
from indexer.core.events import Cleared, Event, Stored, Tier
from indexer.core.names import StreamKey
from indexer.core.stream_state import StreamState
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from tests.events import offloaded, removed
from tests.reference import Copy, Layer, Rank, Reference, Text

TIERS = {"gpu": Tier.GPU, "cpu": Tier.CPU, "disk": Tier.DISK, "other": Tier.OTHER, "remote": Tier.REMOTE}
FULL, WINDOW, STATE = Layer("full", 2), Layer("window", 2, 4), Layer("state", 2)
# Pod, rank → layers, counting. Two ranks share a pod, one pod has another block size, and some models are hybrid.
RANKS: dict[tuple[str, int], tuple[tuple[Layer, ...], bool]] = {
    ("a", 0): ((FULL,), True),
    ("a", 1): ((FULL,), True),
    ("b", 0): ((FULL,), False),
    ("c", 0): ((Layer("full", 3),), True),
    ("e", 0): ((FULL, WINDOW), True),
    ("f", 0): ((WINDOW, FULL, STATE), False),
    ("g", 0): ((FULL, FULL, Layer("window", 2, 6)), True),
    ("h", 0): ((FULL, Layer("window", 4, 5)), True),
}
WORDS = {"full": "full_attention", "window": "sliding_window", "state": "mamba"}


class Store(NamedTuple):
    """Blocks `start` to `stop` of a text. `again`: the last one under a second name, where its first is known. `layers`: those that have them, of
    those that there are."""

    text: Text
    start: int
    stop: int
    tier: str
    again: bool
    layers: tuple[int, ...]


class Update(NamedTuple):
    """One block of a text is announced for a tier without its tokens."""

    text: Text
    block: int
    tier: str
    layer: int


class Evict(NamedTuple):
    """One copy goes: which, of those that there are."""

    which: int


class Miss(NamedTuple):
    """A removal of a block that may never have been stored."""

    text: Text
    block: int
    tier: str
    layer: int


class Clear(NamedTuple):
    """The gpu is emptied."""


Deed = Store | Update | Evict | Miss | Clear


def packed(tokens: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


def folded(text: Text, start: int, stop: int) -> dict[int, bytes]:
    """The extra keys of blocks `start` to `stop`, by their position behind `start`."""
    images = (*text.images, *[()] * stop)
    extra = {
        block - start: fold_extra_keys([[image, 0] for image in images[block]], text.salt if block == 0 else None) for block in range(start, stop)
    }
    return {position: keys for position, keys in extra.items() if keys}


def folded_wide(text: Text, start: int, count: int, units: int) -> dict[int, bytes]:
    """The same of blocks of several units: those of a block are all that its units have."""
    images = [*text.images, *[()] * ((start + count) * units)]
    extra = {
        block - start: fold_extra_keys(
            [[image, 0] for of_unit in images[block * units : (block + 1) * units] for image in of_unit], text.salt if block == 0 else None
        )
        for block in range(start, start + count)
    }
    return {position: keys for position, keys in extra.items() if keys}


class Engine:
    """Does the same deeds to a rank of the reference and, as events, to a stream of the index."""

    def __init__(self, stream: StreamKey, rank: Rank, view: View) -> None:
        self.stream = stream
        self.rank = rank
        self.view = view
        self.state = StreamState(stream.model, "", "copies" if rank.counts_copies else "set")
        self.hashes: dict[tuple[Text, int], int] = {}
        self.linked: set[Text] = set()
        """Texts whose last blocks of the smallest size the gpu announced. Links to parents lead through these; an engine whose groups have different
        block sizes announces them with the larger ones."""
        view.open(stream)
        self._show_layers()

    def _show_layers(self) -> None:
        """Announce a block of each layer and remove it: all that follows is of known groups and block sizes."""
        text = Text((9,) * 2 * self.rank.block_size)
        ends = [range(layer.size, len(text.tokens) + 1, layer.size) for layer in self.rank.layers]
        stores = [
            self._stored(text, number, 0, [text.until(end // self.rank.unit, self.rank.unit) for end in ends[number]], "gpu")
            for number in range(len(ends))
        ]
        self._apply([*stores, *(removed(store.hashes, Tier.GPU, store.group) for store in stores)])

    def hash_of(self, text: Text, name: int = 0) -> int:
        """This engine's own name for the block that ends a text."""
        new = (len(self.hashes) + 1) * 0x9E3779B97F4A7C15 % 2**64
        return self.hashes.setdefault((text, name), new)

    def do(self, deeds: list[Deed]) -> None:
        """All of them in one batch."""
        self._apply([event for deed in deeds for event in self._events(deed)])

    def _apply(self, events: list[Event]) -> None:
        # A second clear in one batch is of the lower tiers.
        clears = [place for place, made in enumerate(events) if isinstance(made, Cleared)]
        parts = [events[start:stop] for start, stop in pairwise([0, *clears[1:], len(events)])]
        for part in parts:
            change = self.state.apply(part, 0.0)
            self.view.append(self.stream, self.state.shape, change)

    def _group(self, layer: int) -> int | None:
        return None if len(self.rank.layers) == 1 else layer

    def _events(self, deed: Deed) -> list[Event]:
        rank = self.rank
        layers = len(rank.layers)
        match deed:
            case Store(text, start, stop, tier, again, wanted):
                return [
                    made
                    for layer in sorted({layer % layers for layer in wanted})
                    if (made := self._store(text, layer, start, stop, tier, again)) is not None
                ]
            case Update(text, block, tier, layer):
                layer %= layers
                ended = text.until((block + 1) * rank.layers[layer].size // rank.unit, rank.unit)
                if not self._is_linked(ended, layer):
                    return []
                rank.update(Copy(tier, ended, 0, layer))
                return [offloaded([self.hash_of(ended)], TIERS[tier], group=self._group(layer))]
            case Evict(which):
                if not rank.copies:
                    return []
                copy = rank.copies[which % len(rank.copies)]
                rank.remove(copy)
                return [removed([self.hash_of(copy.text, copy.name)], TIERS[copy.tier], self._group(copy.layer))]
            case Miss(text, block, tier, layer):
                layer %= layers
                ended = text.until((block + 1) * rank.layers[layer].size // rank.unit, rank.unit)
                rank.remove(Copy(tier, ended, 0, layer))
                return [removed([self.hash_of(ended)], TIERS[tier], self._group(layer))]
            case Clear():
                rank.clear_gpu()
                return [Cleared()]

    def _is_linked(self, ended: Text, layer: int) -> bool:
        """Whether the parts of the block that ends a text were announced: without its tokens a larger block covers what links to parents lead to."""
        unit, last = self.rank.unit, len(ended.tokens) // self.rank.unit
        parts = self.rank.layers[layer].size // unit
        return parts == 1 or all(ended.until(number, unit) in self.linked for number in range(last - parts + 1, last + 1))

    def _store(self, text: Text, layer: int, start: int, stop: int, tier: str, again: bool) -> Stored | None:
        size, unit = self.rank.layers[layer].size, self.rank.unit
        stop = min(stop, len(text.tokens) // size)
        if start >= stop:
            return None
        ended = [text.until(end // unit, unit) for end in range((start + 1) * size, stop * size + 1, size)]
        if tier == "gpu" and size == unit:
            self.linked.update(ended)
        # Where one of an event's larger blocks does not tell its content, all of them are known by the names that smaller ones end with.
        if not all(self.rank.is_told(Copy(tier, part, 0, layer)) for part in ended) and not all(self._is_linked(part, layer) for part in ended):
            return None
        # A second name only where the whole chain before it is announced at the same time: nothing can wait for an unknown parent. Where groups have
        # different block sizes they share the names: a larger block with extra keys is known by the name that a smaller one ends with.
        is_alone = all(other.size == unit for other in self.rank.layers)
        last = int(again and start == 0 and is_alone and (ended[-1], 0) in self.rank.announced)
        for place, part in enumerate(ended):
            self.rank.store(Copy(tier, part, last if part is ended[-1] and place == len(ended) - 1 else 0, layer))
        return self._stored(text, layer, start, ended, tier, last)

    def _stored(self, text: Text, layer: int, start: int, ended: list[Text], tier: str, last: int = 0) -> Stored:
        """Blocks that end these texts, the last one under this name."""
        rank = self.rank
        kind, size, window = rank.layers[layer]
        hashes = [self.hash_of(part, name) for part, name in zip(ended, [*[0] * (len(ended) - 1), last], strict=True)]
        parent = self.hash_of(text.until(start * size // rank.unit, rank.unit)) if start else None
        tokens = packed(text.tokens[start * size : start * size + len(ended) * size])
        extra = folded(text, start, start + len(ended)) if size == rank.unit else folded_wide(text, start, len(ended), size // rank.unit)
        group = self._group(layer)
        word = None if group is None else WORDS[kind]
        more = {"window": window or None, "lists_extra_keys": True}
        return Stored(hashes, parent, tokens, size, TIERS[tier], text.lora, extra, True, group, word, **more)  # type: ignore[arg-type]


# Few tokens and long common beginnings, so that texts meet and part in the middle.
BASES = ((0,) * 13, (0, 1) * 6 + (0,), (0,) * 6 + (1,) * 7)


@st.composite
def texts(draw: st.DrawFn) -> Text:
    tokens = list(draw(st.sampled_from(BASES))[: 13 - draw(st.sampled_from([0, 0, 0, 1, 2, 4, 7, 12, 13]))])
    if tokens and draw(st.integers(0, 2)) == 2:
        tokens[draw(st.integers(0, len(tokens) - 1))] ^= 1
    lora = draw(st.sampled_from([None, None, None, "ad"]))
    salt = draw(st.sampled_from([None, None, None, "s", "t"]))
    images = draw(st.sampled_from([(), (), (), (("x",),), ((), ("x",)), ((), ("x", "y")), ((), ("y", "x"))]))
    return Text(tuple(tokens), lora, salt, images)


def deeds_on(drawn: list[Text]) -> st.SearchStrategy[Deed]:
    text, block = st.sampled_from(drawn), st.integers(0, 5)
    # All layers at once, as engines do, or some.
    layers = st.sampled_from([(0, 1, 2), (0, 1, 2), (0,), (1,), (2,), (0, 1)])
    layer = st.integers(0, 2)
    # The gpu most of the time: it is where copies, clears and holes meet.
    tier = st.sampled_from(["gpu", "gpu", "gpu", *TIERS])
    whole = st.builds(Store, text, st.just(0), st.integers(1, 6), tier, st.booleans(), layers)
    # A beginning alone gives keys to what waits behind it and no copies.
    beginning = st.builds(Store, text, st.just(0), st.just(1), tier, st.booleans(), layers)
    later = st.builds(Store, text, st.integers(1, 4), st.integers(2, 6), tier, st.just(False), layers)
    return st.one_of(
        whole,
        whole,
        beginning,
        later,
        later,
        st.builds(Update, text, block, tier, layer),
        st.builds(Evict, st.integers(0, 20)),
        st.builds(Evict, st.integers(0, 20)),
        st.builds(Miss, text, block, tier, layer),
        st.builds(Clear),
    )


Batches = list[tuple[tuple[str, int], list[Deed]]]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Text], Batches]:
    drawn = draw(st.lists(texts(), min_size=1, max_size=3, unique=True))
    # Few at a time, so that much happens to each.
    ranks = draw(st.lists(st.sampled_from(list(RANKS)), min_size=1, max_size=3, unique=True))
    batch = st.tuples(st.sampled_from(ranks), st.lists(deeds_on(drawn), min_size=1, max_size=5))
    return drawn, draw(st.lists(batch, max_size=14))


def answer(view: View, prompt: Text) -> list[tuple[str, list[tuple[int, list[int], float]]]]:
    """The index's answer in the reference's words."""
    scores = view.score(Prompt("m", packed(prompt.tokens), prompt.lora, folded(prompt, 0, 7)))
    for rank in (rank for score in scores for rank in score.ranks):
        assert rank.match.matched_blocks == sum(rank.match.tiers)
    return [(score.pod, [(rank.rank, list(rank.match.tiers), rank.score) for rank in score.ranks]) for score in scores]


@settings(max_examples=400)
@given(histories(), st.lists(texts(), max_size=3))
def test_the_index_answers_what_the_reference_answers(history: tuple[list[Text], Batches], strangers: list[Text]) -> None:
    stored, batches = history
    view = View(Settings())
    engines = {
        (pod, number): Engine(StreamKey("m", pod, number), Rank(*layers, counts_copies=counts_copies), view)
        for (pod, number), (layers, counts_copies) in RANKS.items()
        if (pod, number) in {name for name, _ in batches} or pod == "b"
    }
    reference = Reference({name: engine.rank for name, engine in engines.items()})
    prompts = [*stored, *strangers]
    for name, deeds in batches:
        engines[name].do(deeds)
        for prompt in prompts:
            assert answer(view, prompt) == reference.answer(prompt)
    best = max(sum(tiers) for prompt in prompts for _, ranks in reference.answer(prompt) for _, tiers, _ in ranks)
    event(f"longest match: {best}")


# The reference itself, by hand


def test_the_reference_imports_nothing_of_the_project() -> None:
    tree = ast.parse((Path(__file__).parent / "reference.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [node.module for node in imports if isinstance(node, ast.ImportFrom)] == ["math", "typing"]
    assert len(imports) == 2


def rank_with(*copies: Copy, counts_copies: bool = True) -> Rank:
    rank = Rank(FULL, counts_copies=counts_copies)
    for copy in copies:
        rank.hold(copy)
    return rank


def test_the_reference_matches_consecutive_blocks_in_their_best_tier() -> None:
    text = Text((1, 1, 2, 2, 3, 3, 4))
    rank = rank_with(Copy("cpu", text.until(1, 2), 0), Copy("gpu", text.until(1, 2), 0), Copy("disk", text.until(2, 2), 0))
    assert rank.match(text) == {"gpu": 1, "cpu": 0, "disk": 1, "other": 0}
    assert rank.score(text) == (1.0 + 0.5) * 2 / 6
    rank.hold(Copy("gpu", text.until(3, 2), 0))
    rank.remove(Copy("disk", text.until(2, 2), 0))
    assert sum(rank.match(text).values()) == 1


def test_the_reference_counts_copies_or_not() -> None:
    text = Text((1, 1, 2))
    copy = Copy("gpu", text.until(1, 2), 0)
    for counts_copies, left in ((True, 1), (False, 0)):
        rank = rank_with(copy, copy, counts_copies=counts_copies)
        rank.remove(copy)
        assert rank.match(text)["gpu"] == left


def test_the_reference_tells_texts_apart_by_all_that_isolates() -> None:
    text = Text((1, 1, 2, 2, 3), None, None, ((), ("x",)))
    rank = rank_with(*(Copy("gpu", text.until(blocks, 2), 0) for blocks in (1, 2)))
    assert sum(rank.match(text).values()) == 2
    assert sum(rank.match(text._replace(images=())).values()) == 1
    assert sum(rank.match(text._replace(salt="s")).values()) == 0
    assert sum(rank.match(text._replace(lora="ad")).values()) == 0


def test_the_reference_clears_the_gpu_alone() -> None:
    text = Text((1, 1, 2))
    rank = rank_with(Copy("gpu", text.until(1, 2), 0), Copy("cpu", text.until(1, 2), 0))
    rank.clear_gpu()
    assert rank.match(text) == {"gpu": 0, "cpu": 1, "disk": 0, "other": 0}


def layered(*layers: Layer, held: dict[int, str]) -> tuple[Rank, Text]:
    """A rank with blocks of a text, layer by layer: an x for each that it has."""
    text = Text((*range(16), 0))
    rank = Rank(*layers)
    for layer, blocks in held.items():
        for number, letter in enumerate(blocks, 1):
            if letter == "x":
                copy = Copy("gpu", text.until(number * layers[layer].size // rank.unit, rank.unit), 0, layer)
                rank.hold(copy)
    return rank, text


def test_the_reference_knows_the_engines_hit_rule() -> None:
    for layers, held, hit in (
        ((FULL, WINDOW), {0: "xxxxxxxx", 1: "......xx"}, 8),
        ((FULL, WINDOW), {0: "xxxxxxxx", 1: "....xx.."}, 6),
        ((FULL, WINDOW), {0: "xxxxxxxx", 1: ".x......"}, 0),
        ((FULL, WINDOW), {0: "xxxxxxxx", 1: "x......."}, 1),
        ((FULL, WINDOW), {0: "xxx.xxxx", 1: "xxxxxxxx"}, 3),
        ((FULL, STATE), {0: "xxxxxxxx", 1: "..x....."}, 3),
        ((FULL, FULL), {0: "xxxxxxxx", 1: "xxxxx..."}, 5),
        ((WINDOW,), {0: "...xx..."}, 5),
        ((FULL, Layer("window", 4, 5)), {0: "xxxxxxx.", 1: "..x."}, 3),
        ((FULL, Layer("window", 4, 5)), {0: "xxxxxxx.", 1: "...x"}, 0),
    ):
        rank, text = layered(*layers, held=held)
        assert rank.match(text)["gpu"] == hit, (layers, held)
