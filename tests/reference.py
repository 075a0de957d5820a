"""A naive model of the whole index, to compare the real one with.

It remembers physical copies by their whole content and compares tokens with tokens. It shares no code with the index: no hashes, no keys, no
events, no masks, and it imports nothing of the project.
"""

from math import gcd, lcm
from typing import NamedTuple

WEIGHTS = {"gpu": 1.0, "cpu": 0.8, "disk": 0.5, "other": 0.3}
"""By tier, best first. What lies in any other tier is nobody's own."""


class Text(NamedTuple):
    """What a prompt is made of. `images`: those of each block, by the block's number."""

    tokens: tuple[int, ...]
    lora: str | None = None
    salt: str | None = None
    images: tuple[tuple[str, ...], ...] = ()

    def until(self, blocks: int, block_size: int) -> "Text":
        """The text up to the end of so many blocks: this is what its last block depends on."""
        images = (*self.images, *[()] * blocks)[:blocks]
        return Text(self.tokens[: blocks * block_size], self.lora, self.salt, images)


class Layer(NamedTuple):
    """A KV-cache group. `kind`: full, window or state; `size`: of its blocks, `window`: of a sliding one, in tokens."""

    kind: str
    size: int
    window: int = 0

    def needs(self, tokens: int) -> range:
        """For a hit of so many tokens: the ends, in tokens, of the blocks that have to be there."""
        match self.kind:
            case "full":
                first = 0
            case "window":
                # The one token behind the hit that is computed sees `window - 1` before it.
                blocks = -(-(self.window - 1) // self.size)
                first = max(0, tokens - blocks * self.size)
            case _:
                first = max(0, tokens - self.size)
        return range(first + self.size, tokens + 1, self.size)


class Copy(NamedTuple):
    """One physical copy of the block that ends a text. `name`: tells apart what an engine itself tells apart; `layer`: number of the group."""

    tier: str
    text: Text
    name: int
    layer: int = 0


class Rank:
    """One rank's physical copies. With `counts_copies` off a block is there or not. A plain model has one full layer.

    `unit`: texts are cut at multiples of so many tokens, `block_size`: hits are multiples of so many.
    """

    def __init__(self, *layers: Layer, counts_copies: bool = True) -> None:
        self.layers = layers
        self.unit = gcd(*(layer.size for layer in layers))
        self.block_size = lcm(*(layer.size for layer in layers))
        self.counts_copies = counts_copies
        self.copies: list[Copy] = []
        self.waiting: list[Copy] = []
        self.announced: set[tuple[Text, int]] = set()
        self.reads_whole_prompts = False
        """Whether its connector loads the block that a prompt ends with too (vLLM's OffloadingConnector, where there is one full layer)."""

    def store(self, copy: Copy) -> None:
        """A copy that is announced with its tokens. Below the gpu it counts where the text before it is known: its block may be another's."""
        if self.is_told(copy) and (copy.tier == "gpu" or self.is_known(copy)):
            self.announced.add((copy.text, copy.name))
            for waiting in [other for other in self.waiting if (other.text, other.name) == (copy.text, copy.name)]:
                self.waiting.remove(waiting)
                self.hold(waiting)
        self.update(copy)

    def is_told(self, copy: Copy) -> bool:
        """Whether its announcement tells its content: that of a larger block does not say which of its parts an image is in."""
        parts = self.layers[copy.layer].size // self.unit
        return parts == 1 or not any(copy.text.images[-parts:])

    def is_known(self, copy: Copy) -> bool:
        ends = range(self.unit, len(copy.text.tokens), self.unit)
        before = all((copy.text.until(end // self.unit, self.unit), 0) in self.announced for end in ends)
        return before or (copy.text, copy.name) in self.announced

    def update(self, copy: Copy) -> None:
        """A copy that is announced without its tokens: it counts from when they are announced."""
        if (copy.text, copy.name) in self.announced:
            self.hold(copy)
        else:
            self.waiting.append(copy)

    def hold(self, copy: Copy) -> None:
        if (self.counts_copies and copy.tier == "gpu") or copy not in self.copies:
            self.copies.append(copy)

    def remove(self, copy: Copy) -> None:
        for copies in (self.copies, self.waiting):
            if copy in copies:
                copies.remove(copy)
                if copy.tier == "gpu" and self.counts_copies:
                    break

    def clear_gpu(self) -> None:
        self.copies = [copy for copy in self.copies if copy.tier != "gpu"]
        self.waiting = [copy for copy in self.waiting if copy.tier != "gpu"]

    def best_tiers(self) -> dict[tuple[int, Text], str]:
        """Layer and text → where its last block is."""
        best: dict[tuple[int, Text], str] = {}
        for tier in reversed(WEIGHTS):
            best |= {(copy.layer, copy.text): tier for copy in self.copies if copy.tier == tier}
        return best

    def match(self, prompt: Text) -> dict[str, int]:
        """Matched blocks by tier: the best one of each block of the first full layer, the worst of those in one block of a hit."""
        best = self.best_tiers()
        ends = range(0, len(prompt.tokens) + 1, self.unit)
        tiers = [{end: best.get((layer, prompt.until(end // self.unit, self.unit))) for end in ends} for layer in range(len(self.layers))]

        def is_hit(tokens: int) -> bool:
            return all(found[end] for layer, found in zip(self.layers, tiers, strict=True) for end in layer.needs(tokens))

        # One token is always left for the engine to compute.
        hit = max(tokens for tokens in range(0, max(1, len(prompt.tokens)), self.block_size) if is_hit(tokens))
        matched = dict.fromkeys(WEIGHTS, 0)
        full = next((number for number, layer in enumerate(self.layers) if layer.kind == "full"), None)
        for start in range(0, hit, self.block_size):
            if full is None:
                matched["gpu"] += 1
                continue
            size = self.layers[full].size
            of_block = [tiers[full][end] for end in range(start + size, start + self.block_size + 1, size)]
            matched[max((tier for tier in of_block if tier is not None), key=list(WEIGHTS).index)] += 1
        if self.reads_whole_prompts and len(self.layers) == 1 and hit + self.block_size == len(prompt.tokens):
            last = [copy.tier for copy in self.copies if copy.text == prompt.until(len(prompt.tokens) // self.unit, self.unit) and copy.tier != "gpu"]
            if last:
                matched[min(last, key=list(WEIGHTS).index)] += 1
        return matched

    def score(self, prompt: Text) -> float:
        if len(prompt.tokens) <= 1:
            return 0.0
        weighted = sum(blocks * WEIGHTS[tier] for tier, blocks in self.match(prompt).items())
        return min(1.0, weighted * self.block_size / (len(prompt.tokens) - 1))


class Reference:
    """All pods and ranks of one model."""

    def __init__(self, ranks: dict[tuple[str, int], Rank]) -> None:
        self.ranks = ranks

    def answer(self, prompt: Text) -> list[tuple[str, list[tuple[int, list[int], float]]]]:
        """Pods best first, equal ones by name; each with its ranks, best first: number, blocks by tier, score."""
        pods: dict[str, list[tuple[int, list[int], float]]] = {}
        for (pod, number), rank in self.ranks.items():
            pods.setdefault(pod, []).append((number, list(rank.match(prompt).values()), rank.score(prompt)))
        for scores in pods.values():
            scores.sort(key=lambda score: (-score[2], score[0]))
        return sorted(pods.items(), key=lambda item: (-item[1][0][2], item[0]))
