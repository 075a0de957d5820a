"""Scores of a model whose pods are all plain, without an object for each: pods that match equally far have the same figures.

Plain is a model whose pods have one rank each, all with blocks that are cut in one way and of one group, none of them below the gpu. Whatever else
there is goes by `Lookup`, which says the same.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from indexer.compiled import core
from indexer.core.block_keys import root_key
from indexer.core.names import Trust
from scorer_api.index.mask_walk import Step
from scorer_api.index.prefix_index import PrefixIndex
from scorer_api.index.prompt import Prompt, PromptKeys
from scorer_api.index.scoring import NO_LOWER, gpu_score_of, gpu_scores_of, usable_blocks
from scorer_api.index.state import IndexedModel, IndexedStream

if TYPE_CHECKING:
    from indexer.compiled._core import PlainHolders, PlainMatches

Encode = Callable[[object], bytes]


class PlainPods:
    """The pods of one model, by name. `index`, `cut`: where their blocks are, and how they are cut. `ranks`: the number of each one's rank.

    `encoded`: what a caller keeps for each, by its encoder, and `templates` what it keeps as long as `trusts` are the same. `packed`: their holders
    in the compiled core, where it has the index.
    """

    def __init__(self, names: list[str], ranks: list[int], streams: list[IndexedStream], index: PrefixIndex, cut: tuple[int, int]) -> None:
        self.names, self.ranks, self.streams, self.index, self.cut = names, ranks, streams, index, cut
        self.encoded: dict[Encode, list[bytes]] = {}
        holders = [stream.holders.lead for stream in streams if stream.holders is not None]
        self._numbers = {1 << holder: number for number, holder in enumerate(holders)}
        self._alive = sum(1 << holder for holder in holders)
        self.packed: PlainHolders | None = core.PlainHolders(index, holders) if core is not None and isinstance(index, core.PrefixIndex) else None
        self.templates: dict[Encode, Any] = {}
        self._trusts: list[Trust] = []
        self._trusts_said, self._trusts_until_s = -1, -math.inf

    def trusts(self, said: int, at_s: float) -> list[Trust]:
        """How far each can be relied on. `said`: how often it was said of any. `at_s`: of the monotonic clock."""
        if said != self._trusts_said or at_s >= self._trusts_until_s:
            self._trusts_said = said
            self._trusts_until_s = min((s.trusted_until_s for s in self.streams if s.trusted_until_s > at_s), default=math.inf)
            trusts = [stream.trust_at(at_s) for stream in self.streams]
            if trusts != self._trusts:
                self._trusts = trusts
                self.templates.clear()
        return self._trusts

    def matches(self, keys: PromptKeys) -> list[tuple[int, list[int]]] | None:
        """How many blocks match, and which of the pods it is, by their positions: those that match most first. None where a walk that was prepared
        has met blocks below the gpu."""
        prepared = keys.walks.get(self.cut)
        steps = None if prepared is None else prepared.steps_of(self.index, self.index.removed_holders, self._alive)
        return self._groups(self.index.walk(self._alive, keys.runs(*self.cut)) if steps is None else steps)

    def _groups(self, steps: Sequence[Step]) -> list[tuple[int, list[int]]] | None:
        found = []
        alive = self._alive
        for position, masks in steps:
            if masks[1:] != NO_LOWER:
                return None
            if gone := alive & ~masks[0]:
                found.append((position, self._pods_of(gone)))
                alive = masks[0]
        return found[::-1]

    def _pods_of(self, mask: int) -> list[int]:
        numbers = self._numbers
        if (only := numbers.get(mask)) is not None:
            return [only]
        pods = []
        while mask:
            last = mask & -mask
            pods.append(numbers[last])
            mask ^= last
        pods.sort()
        return pods


class PlainScores:
    """`groups`: matched blocks, their score, and the pods that match so far; best first. `usable_blocks`: of the prompt. `at_s`: of the monotonic
    clock."""

    __slots__ = ("at_s", "groups", "pods", "usable_blocks")

    def __init__(self, pods: PlainPods, groups: list[tuple[int, float, list[int]]], usable: int, at_s: float) -> None:
        self.pods, self.groups, self.usable_blocks, self.at_s = pods, groups, usable, at_s

    @property
    def block_size(self) -> int:
        """In tokens."""
        return self.pods.cut[0]

    @property
    def matched_blocks(self) -> int:
        """The most."""
        return self.groups[0][0] if self.groups else 0

    @property
    def best(self) -> str | None:
        """The first pod; None where nothing matches."""
        return self.pods.names[self.groups[0][2][0]] if self.matched_blocks else None


def plain_scores(pods: PlainPods, keys: PromptKeys, weight: float, at_s: float) -> PlainScores | None:
    """None where some that match differently far have one score: then their names count. `weight`: of the gpu."""
    matches = pods.matches(keys)
    if matches is None:
        return None
    length, size = keys.length, pods.cut[0]
    groups = [(matched, gpu_score_of(matched, length, size, weight), numbers) for matched, numbers in matches]
    if len({score for _, score, _ in groups}) < len(groups):
        return None
    return PlainScores(pods, groups, usable_blocks(length, *pods.cut), at_s)


class PackedScores:
    """The same as `PlainScores`, of matches that the compiled core keeps. `scores`: of the groups of pods that match equally far, best first.

    `trusts`: how far each of the pods can be relied on.
    """

    __slots__ = ("matches", "pods", "scores", "trusts", "usable_blocks")

    def __init__(self, pods: PlainPods, matches: "PlainMatches", scores: list[float], usable: int, trusts: list[Trust]) -> None:
        self.pods, self.matches, self.scores, self.usable_blocks, self.trusts = pods, matches, scores, usable, trusts

    @property
    def block_size(self) -> int:
        """In tokens."""
        return self.pods.cut[0]

    @property
    def matched_blocks(self) -> int:
        """The most."""
        return self.matches.most

    @property
    def best(self) -> str | None:
        """The first pod; None where nothing matches."""
        return self.pods.names[self.matches.first] if self.matches.most else None


def packed_scores(
    pods: PlainPods, holders: "PlainHolders", prompt: Prompt, hash_seed: str, weight: float, trusts: list[Trust]
) -> PackedScores | None:
    """What `plain_scores` says of a prompt without extra keys. `trusts`: of the pods."""
    length = prompt.length
    size, lookahead = pods.cut
    usable = usable_blocks(length, size, lookahead)
    matches = holders.match(root_key(prompt.model, prompt.lora_name, hash_seed), prompt.tokens, size, usable, lookahead)
    scores = gpu_scores_of(matches.lengths(), length, size, weight)
    return PackedScores(pods, matches, scores, usable, trusts) if len(set(scores)) == len(scores) else None


def plain_pods(model: IndexedModel) -> PlainPods | None:
    """A model's pods; None where not all are plain."""
    if not model.knows_plain:
        model.plain, model.knows_plain = _plain_pods(model), True
    found = model.plain
    return found if isinstance(found, PlainPods) and not found.index.has_lower else None


def _plain_pods(model: IndexedModel) -> PlainPods | None:
    """These pods, if they are plain as far as their shapes go."""
    pods = model.pods
    if len(model.indexes) != 1 or not all(_is_plain(ranks.values()) for ranks in pods.values()):
        return None
    ((cut, index),) = model.indexes.items()
    names = sorted(pods)
    ranks = [next(iter(pods[name].items())) for name in names]
    return PlainPods(names, [rank for rank, _ in ranks], [stream for _, stream in ranks], index, cut)


def _is_plain(ranks: Iterable[IndexedStream]) -> bool:
    first, *others = ranks
    holders = first.holders
    if others or holders is None or first.dropped_blocks:
        return False
    return holders.rule is None and not holders.reads_whole_prompts and holders.block_size == holders.key_size and len(holders.by_slot) == 1
