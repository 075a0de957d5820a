"""Whatever engines do, the index answers what a naive model of them answers."""

import ast
import struct
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
from tests.reference import Copy, Rank, Reference, Text

TIERS = {"gpu": Tier.GPU, "cpu": Tier.CPU, "disk": Tier.DISK, "other": Tier.OTHER, "remote": Tier.REMOTE}
# Pod, rank → block size, counting. Two ranks share a pod, one pod has another block size.
RANKS = {("a", 0): (2, True), ("a", 1): (2, True), ("b", 0): (2, False), ("c", 0): (3, True), ("d", 0): (2, False)}


class Store(NamedTuple):
    """Blocks `start` to `stop` of a text. `again`: the last one under a second name, where its first is known."""

    text: Text
    start: int
    stop: int
    tier: str
    again: bool


class Update(NamedTuple):
    """One block of a text is announced for a tier without its tokens."""

    text: Text
    block: int
    tier: str


class Evict(NamedTuple):
    """One copy goes: which, of those that there are."""

    which: int


class Miss(NamedTuple):
    """A removal of a block that may never have been stored."""

    text: Text
    block: int
    tier: str


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


class Engine:
    """Does the same deeds to a rank of the reference and, as events, to a stream of the index."""

    def __init__(self, stream: StreamKey, rank: Rank, view: View) -> None:
        self.stream = stream
        self.rank = rank
        self.view = view
        self.state = StreamState(stream.model, "", "copies" if rank.counts_copies else "set")
        self.hashes: dict[tuple[Text, int], int] = {}
        view.open(stream)

    def hash_of(self, text: Text, name: int = 0) -> int:
        """This engine's own name for the block that ends a text."""
        new = (len(self.hashes) + 1) * 0x9E3779B97F4A7C15 % 2**64
        return self.hashes.setdefault((text, name), new)

    def do(self, deeds: list[Deed]) -> None:
        """All of them in one batch."""
        change = self.state.apply([made for deed in deeds if (made := self._event(deed)) is not None], 0.0)
        if change:
            self.view.append(self.stream, self.rank.block_size, change)

    def _event(self, deed: Deed) -> Event | None:
        size = self.rank.block_size
        match deed:
            case Store(text, start, stop, tier, again):
                stop = min(stop, len(text.tokens) // size)
                if start >= stop:
                    return None
                return self._store(text, start, stop, tier, again)
            case Update(text, block, tier):
                ended = text.until(block + 1, size)
                self.rank.update(Copy(tier, ended, 0))
                return offloaded([self.hash_of(ended)], TIERS[tier], group=None)
            case Evict(which):
                if not self.rank.copies:
                    return None
                copy = self.rank.copies[which % len(self.rank.copies)]
                self.rank.remove(copy)
                return removed([self.hash_of(copy.text, copy.name)], TIERS[copy.tier], None)
            case Miss(text, block, tier):
                ended = text.until(block + 1, size)
                self.rank.remove(Copy(tier, ended, 0))
                return removed([self.hash_of(ended)], TIERS[tier], None)
            case Clear():
                self.rank.clear_gpu()
                return Cleared()

    def _store(self, text: Text, start: int, stop: int, tier: str, again: bool) -> Stored:
        size = self.rank.block_size
        ended = [text.until(block + 1, size) for block in range(start, stop)]
        # A second name only where the whole chain before it is announced at the same time: nothing can wait for an unknown parent.
        last = int(again and start == 0 and (ended[-1], 0) in self.rank.announced)
        names = [*[0] * (len(ended) - 1), last]
        for part, name in zip(ended, names, strict=True):
            self.rank.store(Copy(tier, part, name))
        hashes = [self.hash_of(part, name) for part, name in zip(ended, names, strict=True)]
        parent = self.hash_of(text.until(start, size)) if start else None
        tokens = packed(text.tokens[start * size : stop * size])
        return Stored(hashes, parent, tokens, size, TIERS[tier], text.lora, folded(text, start, stop), True, None, None)


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
    # The gpu most of the time: it is where copies, clears and holes meet.
    tier = st.sampled_from(["gpu", "gpu", "gpu", *TIERS])
    whole = st.builds(Store, text, st.just(0), st.integers(1, 6), tier, st.booleans())
    # A beginning alone gives keys to what waits behind it and no copies.
    beginning = st.builds(Store, text, st.just(0), st.just(1), tier, st.booleans())
    later = st.builds(Store, text, st.integers(1, 4), st.integers(2, 6), tier, st.just(False))
    return st.one_of(
        whole,
        whole,
        beginning,
        later,
        later,
        st.builds(Update, text, block, tier),
        st.builds(Evict, st.integers(0, 20)),
        st.builds(Evict, st.integers(0, 20)),
        st.builds(Miss, text, block, tier),
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
        (pod, number): Engine(StreamKey("m", pod, number), Rank(block_size, counts_copies), view)
        for (pod, number), (block_size, counts_copies) in RANKS.items()
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
    assert [node.module for node in imports if isinstance(node, ast.ImportFrom)] == ["typing"]
    assert len(imports) == 1


def rank_with(*copies: Copy, counts_copies: bool = True) -> Rank:
    rank = Rank(2, counts_copies)
    for copy in copies:
        rank.store(copy)
    return rank


def test_the_reference_matches_consecutive_blocks_in_their_best_tier() -> None:
    text = Text((1, 1, 2, 2, 3, 3, 4))
    rank = rank_with(Copy("cpu", text.until(1, 2), 0), Copy("gpu", text.until(1, 2), 0), Copy("disk", text.until(2, 2), 0))
    assert rank.match(text) == {"gpu": 1, "cpu": 0, "disk": 1, "other": 0}
    assert rank.score(text) == (1.0 + 0.5) * 2 / 6
    rank.store(Copy("gpu", text.until(3, 2), 0))
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
