"""A naive model of the whole index, to compare the real one with.

It remembers physical copies by their whole content and compares tokens with tokens. It shares no code with the index: no hashes, no keys, no
events, no masks, and it imports nothing of the project.
"""

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


class Copy(NamedTuple):
    """One physical copy of the block that ends a text. `name`: tells apart what an engine itself tells apart."""

    tier: str
    text: Text
    name: int


class Rank:
    """One rank's physical copies. With `counts_copies` off a block is there or not."""

    def __init__(self, block_size: int, counts_copies: bool = True) -> None:
        self.block_size = block_size
        self.counts_copies = counts_copies
        self.copies: list[Copy] = []
        self.announced: set[tuple[Text, int]] = set()

    def store(self, copy: Copy) -> None:
        self.announced.add((copy.text, copy.name))
        if self.counts_copies or copy not in self.copies:
            self.copies.append(copy)

    def update(self, copy: Copy) -> None:
        """A copy that is announced without its tokens: it counts where they were announced before."""
        if (copy.text, copy.name) in self.announced:
            self.store(copy)

    def remove(self, copy: Copy) -> None:
        if copy in self.copies:
            self.copies.remove(copy)

    def clear_gpu(self) -> None:
        self.copies = [copy for copy in self.copies if copy.tier != "gpu"]

    def match(self, prompt: Text) -> dict[str, int]:
        """Matched blocks by their best tier."""
        matched = dict.fromkeys(WEIGHTS, 0)
        blocks = 0
        # One token is always left for the engine to compute.
        while (blocks + 1) * self.block_size <= len(prompt.tokens) - 1:
            blocks += 1
            wanted = prompt.until(blocks, self.block_size)
            tiers = {copy.tier for copy in self.copies if copy.text == wanted}
            best = next((tier for tier in WEIGHTS if tier in tiers), None)
            if best is None:
                break
            matched[best] += 1
        return matched

    def score(self, prompt: Text) -> float:
        if len(prompt.tokens) <= 1:
            return 0.0
        weighted = sum(blocks * WEIGHTS[tier] for tier, blocks in self.match(prompt).items())
        return weighted * self.block_size / (len(prompt.tokens) - 1)


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
