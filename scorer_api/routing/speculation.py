"""Speculative blocks: those of prompts that this scorer routed a moment ago, whose events have not arrived yet.

Each prompt counts by itself, from its pick until its pod announces its last block, until the request is done, or until its time has passed. So a
prompt that ends removes nothing of others with the same prefix. Speculative blocks are never in the prefix index, and never in Redis.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from msgspec import Struct

from indexer.core.change import Change
from indexer.core.names import StreamKey
from scorer_api.index.prefix_index import OWN_TIERS
from scorer_api.routing.prompt_tree import Node, PromptTree

# Above this number of blocks, 8 bytes each, the oldest prompts are forgotten.
BLOCKS_MAX = 2**20

# One prompt in SAMPLE is compared with what its pod holds in the end: comparing each would cost a third of a pick.
SAMPLE = 8

Rank = tuple[str, int]
"""A pod and one of its ranks."""

Cut = tuple[int, int]
"""How blocks are cut, see `CacheShape.cut`."""


class SpeculativePrompt(Struct, frozen=True, gc=False):
    """One routed prompt. `matched_blocks`: how many of its first blocks the rank held at the pick. `end`: its last node in the tree."""

    stream: StreamKey
    cut: Cut
    matched_blocks: int
    last_key: int
    until_s: float
    end: Node[Rank]
    is_sampled: bool


OnEnd = Callable[[SpeculativePrompt, Sequence[int]], None]
"""Called with every SAMPLE-th prompt, from the first, and its block keys, once its events have arrived or its time has passed."""


class Speculation:
    """`lasts_s`: how long a prompt counts. Times are of the monotonic clock, and never decrease."""

    def __init__(self, lasts_s: float, ended: OnEnd, blocks_max: int = BLOCKS_MAX) -> None:
        self._lasts_s = lasts_s
        self._ended = ended
        self._blocks_max = blocks_max
        self._expected: OrderedDict[str, SpeculativePrompt] = OrderedDict()
        self._trees: dict[tuple[str, Cut], PromptTree[Rank]] = {}
        self._awaited: dict[StreamKey, dict[int, dict[str, None]]] = {}
        self._added = 0
        self.announced: Callable[[str], None] | None = None
        """Called with the name of each prompt whose last block its rank announces."""
        self.blocks = 0
        """The number of speculative blocks; those that prompts share count once."""

    def __len__(self) -> int:
        """The number of prompts that count."""
        return len(self._expected)

    def add(self, name: str, stream: StreamKey, cut: Cut, keys: Sequence[int], matched_blocks: int, now_s: float) -> None:
        """A prompt with these block keys was sent to the stream's rank, which held the first `matched_blocks` of them."""
        tree = self._trees.setdefault((stream.model, cut), PromptTree())
        before = tree.blocks
        end = tree.add((stream.pod, stream.rank), keys)
        self.blocks += tree.blocks - before
        self._expected[name] = SpeculativePrompt(stream, cut, matched_blocks, keys[-1], now_s + self._lasts_s, end, self._added % SAMPLE == 0)
        self._added += 1
        self._awaited.setdefault(stream, {}).setdefault(keys[-1], {})[name] = None

    def match(self, model: str, cut: Cut, keys: Sequence[int]) -> dict[Rank, int]:
        """Rank → how many of these blocks, from the first, it is expected to hold."""
        tree = self._trees.get((model, cut))
        return {} if tree is None else tree.match(keys)

    def cuts(self, model: str) -> list[Cut]:
        """How the prompts that are kept of a model are cut."""
        return [cut for name, cut in self._trees if name == model]

    def take_back(self, name: str) -> bool:
        """Stop counting this prompt. Returns whether it counted."""
        return self._remove(name) is not None

    def expire(self, now_s: float) -> None:
        """End the prompts whose time has passed, and the oldest above the limit."""
        while self._expected:
            name, oldest = next(iter(self._expected.items()))
            if oldest.until_s > now_s and self.blocks <= self._blocks_max:
                return
            self._end(name)

    def on_change(self, stream: StreamKey, change: Change) -> None:
        """The rank announced this change, and the index has it. A reload means that the engine was restarted: what was sent before is gone."""
        awaited = self._awaited.get(stream)
        if awaited is None:
            return
        if change.reload:
            self.on_drop(stream)
            return
        for tiers in (change.touched, *change.touched_in.values()):
            for tier in OWN_TIERS:
                touched = tiers[tier]
                if touched:
                    self._arrive(awaited, [key for key in awaited.keys() & touched.keys() if touched[key]])

    def on_load(self, stream: StreamKey, is_held: Callable[[int], bool]) -> None:
        """The rank's blocks were loaded as a whole. Prompts whose last block is among them have been announced meanwhile."""
        awaited = self._awaited.get(stream, {})
        self._arrive(awaited, [key for key in awaited if is_held(key)])

    def _arrive(self, awaited: dict[int, dict[str, None]], keys: Sequence[int]) -> None:
        for key in keys:
            for name in list(awaited[key]):
                if self.announced is not None:
                    self.announced(name)
                self._end(name)

    def on_drop(self, stream: StreamKey) -> None:
        """The rank holds nothing any more, not even what was sent to it."""
        for names in list(self._awaited.get(stream, {}).values()):
            for name in list(names):
                self._remove(name)

    def _end(self, name: str) -> None:
        found = self._expected[name]
        keys = PromptTree.keys_of(found.end) if found.is_sampled else None
        self._remove(name)
        if keys is not None:
            self._ended(found, keys)

    def _remove(self, name: str) -> SpeculativePrompt | None:
        found = self._expected.pop(name, None)
        if found is None:
            return None
        stream = found.stream
        tree = self._trees[stream.model, found.cut]
        before = tree.blocks
        tree.remove((stream.pod, stream.rank), found.end)
        self.blocks -= before - tree.blocks
        if not tree.blocks:
            del self._trees[stream.model, found.cut]
        awaited = self._awaited[stream]
        del awaited[found.last_key][name]
        if not awaited[found.last_key]:
            del awaited[found.last_key]
            if not awaited:
                del self._awaited[stream]
        return found
