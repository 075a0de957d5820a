"""What a scorer knows: the models, their pods and streams, and a prefix index per (model, block size).

It is the store of the embedded mode: changes go straight into the index. A follower of the log writes to it in the same way, and exchanges what a
stream holds, once it has loaded it, for what it held before.
"""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Protocol

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.block_keys import TOKEN_BYTES, chain_keys, root_key
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.names import StreamKey, Trust
from scorer_api.index.engine_hashes import EngineHashes, FollowedHashes, HashKeys, KeyOf, OwnedHashes
from scorer_api.index.holding import Holding
from scorer_api.index.loads import Loads
from scorer_api.index.prefix_index import PrefixIndex, Step
from scorer_api.index.removals import Removals
from scorer_api.index.scoring import NO_MATCH, Match, match_of, matches_of, runs_of, score_of, usable_blocks
from scorer_api.index.seen import PodSeen, RankSeen

# Keys are computed so many at a time: a cold prompt costs one run only.
RUN_BLOCKS = 64
EMBEDDED = "embedded"


class Prompt(Struct, frozen=True):
    """What to look for. `tokens`: little-endian uint32. `extra_keys`: block number → folded extra keys."""

    model: str
    tokens: bytes
    lora_name: str | None = None
    extra_keys: Mapping[int, bytes] | None = None

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.tokens) // TOKEN_BYTES


def tokens_at(prompt: Prompt | EngineHashes, block_size: int) -> int:
    """The length of what is looked for: of engine hashes all may match, so it is that of their blocks and one token more."""
    return prompt.length if isinstance(prompt, Prompt) else len(prompt.hashes) * block_size + 1


class RankScore(Struct, frozen=True):
    """What one rank of a pod holds of a prompt."""

    rank: int
    match: Match
    score: float
    block_size: int | None
    usable_blocks: int
    trust: Trust


class PodScore(Struct, frozen=True):
    """A pod's ranks, the best one first."""

    pod: str
    ranks: list[RankScore]


class Listener(Protocol):
    """Is told what streams come to hold, once they do."""

    def appended(self, stream: StreamKey, change: Change) -> None: ...

    def loaded(self, stream: StreamKey, is_held: Callable[[int], bool]) -> None:
        """A follower loaded all that it holds at once. `is_held`: of a block key."""

    def dropped(self, stream: StreamKey) -> None:
        """It holds nothing any more."""


class _StreamView(Struct):
    """`trust` counts until `until_s`, by the monotonic clock. `has_other_seed`: whoever follows it makes its block keys with another hash seed."""

    removals: Removals
    trust: Trust = Trust.STALE
    until_s: float = math.inf
    block_size: int | None = None
    holder: int | None = None
    has_other_seed: bool = False
    hashes: HashKeys | None = None

    def trust_at(self, now_s: float) -> Trust:
        return self.trust if now_s < self.until_s or self.trust is Trust.EXPIRED else Trust.STALE


class _Trace(Struct, frozen=True):
    """A walk, and the block keys up to its end."""

    index: PrefixIndex
    steps: list[Step]
    keys: list[int]


class _Model:
    """One model's streams and indexes."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[int, _StreamView]] = {}
        self.indexes: dict[int, PrefixIndex] = {}
        self.asked = self.unmatched = 0
        """Prompts that were looked for, and how many of them since the last one that anybody held a part of."""


class View:
    """Implements `indexer.store.Store`. `source`: where its changes come from, as answers say it."""

    has_limits = False

    def __init__(self, settings: Settings, source: str = EMBEDDED) -> None:
        self.source = source
        self._heard_at_s: float | None = None
        self._hash_seed = settings.hash_seed
        self._weights = settings.tier_weights
        self._removals_max = settings.explain_removals_max
        self._models: dict[str, _Model] = {}
        self.loads = Loads()
        self.listener: Listener | None = None
        self._follows_hashes = settings.engine_hashes and source != EMBEDDED
        self.mapped_key: Callable[[StreamKey], KeyOf | None] | None = None
        """Where the streams run in this process: which block keys the engine hashes of a stream stand for."""

    # The store

    def open(self, stream: StreamKey) -> None:
        self.close(stream)
        model = self._models.setdefault(stream.model, _Model())
        model.pods.setdefault(stream.pod, {})[stream.rank] = _StreamView(Removals(self._removals_max), hashes=self._new_hashes(stream))

    def append(self, stream: StreamKey, block_size: int, change: Change) -> None:
        model, view = self._find(stream)
        if view.block_size != block_size:
            self._drop(model, view)
            view.block_size = block_size
            view.holder = model.indexes.setdefault(block_size, PrefixIndex()).add_holder()
        assert view.holder is not None, "a stream with a block size has a holder"
        index = model.indexes[block_size]
        if self._removals_max:
            view.removals.note(change, index.held(view.holder, Tier.GPU) if change.cleared else ())
        index.apply(view.holder, change)
        if view.hashes is not None:
            view.hashes.apply(change, index, view.holder)
        if self.listener is not None:
            self.listener.appended(stream, change)

    def recorded(self, stream: StreamKey) -> None:
        """Nothing to do: the sequence of a stream is no part of any answer."""

    def drop(self, stream: StreamKey) -> None:
        self._drop(*self._find(stream))
        if self.listener is not None:
            self.listener.dropped(stream)

    def vouch(self, stream: StreamKey, trust: Trust, until_s: float = math.inf) -> None:
        """`until_s`: from then on, by the monotonic clock, the stream is stale."""
        view = self._find(stream)[1]
        view.trust, view.until_s = trust, until_s

    def close(self, stream: StreamKey) -> None:
        model = self._models.get(stream.model)
        if model is None or stream.rank not in model.pods.get(stream.pod, {}):
            return
        self._drop(model, model.pods[stream.pod].pop(stream.rank))
        if self.listener is not None:
            self.listener.dropped(stream)
        if not model.pods[stream.pod]:
            del model.pods[stream.pod]
            self.loads.forget(stream.model, stream.pod)
        if not model.pods:
            del self._models[stream.model]

    async def room(self, stream: StreamKey) -> None:
        """Changes are in the index at once."""

    # What a follower needs besides

    def hear(self, at_s: float) -> None:
        """Some owner gave word at this time of the monotonic clock."""
        self._heard_at_s = at_s if self._heard_at_s is None else max(self._heard_at_s, at_s)

    def hold_apart(self, stream: StreamKey, block_size: int) -> Holding:
        """Room in the index for what a stream will hold: in no answer until it is exchanged for what the stream holds now."""
        return Holding(self._find(stream)[0].indexes, block_size, hashes=FollowedHashes() if self._follows_hashes else None)

    def exchange(self, stream: StreamKey, new: Holding | None) -> Holding | None:
        """Let the stream hold this, or nothing. Returns what it held, which the caller gives back in pieces: it may be large."""
        model, view = self._find(stream)
        held = None
        if view.block_size is not None and view.holder is not None:
            held = Holding(model.indexes, view.block_size, view.holder)
        view.block_size, view.holder = (None, None) if new is None else (new.block_size, new.holder)
        view.hashes = self._new_hashes(stream) if new is None else new.hashes
        view.removals.forget()
        if self.listener is not None:
            self.listener.loaded(stream, lambda key: self.held(stream, (key,)) > 0)
        return held

    def note_seed(self, stream: StreamKey, hash_seed: str) -> None:
        """What the block keys of a stream are made with, by whoever makes them."""
        self._find(stream)[1].has_other_seed = hash_seed != self._hash_seed

    def _find(self, stream: StreamKey) -> tuple[_Model, _StreamView]:
        model = self._models[stream.model]
        return model, model.pods[stream.pod][stream.rank]

    def _new_hashes(self, stream: StreamKey) -> HashKeys | None:
        """Of a stream that holds nothing; None where engine hashes cannot be asked by."""
        if self._follows_hashes:
            return FollowedHashes()
        return OwnedHashes(lambda: None if self.mapped_key is None else self.mapped_key(stream)) if self.source == EMBEDDED else None

    def _drop(self, model: _Model, view: _StreamView) -> None:
        view.removals.forget()
        if isinstance(view.hashes, FollowedHashes):
            view.hashes = FollowedHashes()
        if view.block_size is None or view.holder is None:
            return
        index = model.indexes[view.block_size]
        index.remove_holder(view.holder)
        if index.is_empty:
            del model.indexes[view.block_size]
        view.block_size = view.holder = None

    # Questions

    @property
    def age_s(self) -> float:
        """Age of the newest word of any owner."""
        return 0.0 if self._heard_at_s is None else max(0.0, time.monotonic() - self._heard_at_s)

    def trust(self, stream: StreamKey) -> Trust:
        """How far the stream's content can be relied on now."""
        return self._find(stream)[1].trust_at(time.monotonic())

    def has_model(self, model: str) -> bool:
        """Whether a pod of it is registered."""
        return model in self._models

    def trusts(self, model: str) -> dict[str, Trust]:
        """How far each pod of a model can be relied on now, by its best rank. Raises KeyError for an unknown model."""
        now_s = time.monotonic()
        order = list(Trust)
        pods = self._models[model].pods.items()
        return {pod: min((view.trust_at(now_s) for view in ranks.values()), key=order.index) for pod, ranks in pods}

    def count(self, trust: Trust) -> int:
        """How many streams can be relied on so far, now."""
        now_s = time.monotonic()
        return sum(view.trust_at(now_s) is trust for model in self._models.values() for ranks in model.pods.values() for view in ranks.values())

    def models(self) -> dict[str, list[str]]:
        """Every model with its pods."""
        return {name: list(model.pods) for name, model in self._models.items()}

    @property
    def indexes(self) -> Iterator[PrefixIndex]:
        """Every index there is."""
        return (index for model in self._models.values() for index in model.indexes.values())

    def keys(self, prompt: Prompt, block_size: int, made: dict[int, list[int]]) -> list[int]:
        """The keys of all whole blocks of a prompt. `made`: block size → those of its first ones that there are already; the others are added."""
        keys = made.setdefault(block_size, [])
        parent = keys[-1] if keys else root_key(prompt.model, prompt.lora_name, self._hash_seed)
        blocks = prompt.length // block_size
        if len(keys) < blocks:
            keys += chain_keys(parent, prompt.tokens, block_size, prompt.extra_keys, len(keys), blocks)
        return keys

    def held(self, stream: StreamKey, keys: Iterable[int]) -> int:
        """How many of these blocks the stream holds now, in any tier of its own."""
        model = self._models.get(stream.model)
        view = None if model is None else model.pods.get(stream.pod, {}).get(stream.rank)
        if model is None or view is None or view.block_size is None or view.holder is None:
            return 0
        return model.indexes[view.block_size].count_held(view.holder, keys)

    def score(self, prompt: Prompt | EngineHashes, only: Collection[str] | None = None, made: dict[int, list[int]] | None = None) -> list[PodScore]:
        """Every pod of the model, or only these, best first, equal ones by name. Raises KeyError for an unknown model.

        `made` is filled with the block keys that were needed, by block size, from the first on.
        """
        model = self._models[prompt.model]
        made = {} if made is None else made
        pods = model.pods if only is None else {pod: ranks for pod, ranks in model.pods.items() if pod in only}
        now_s = time.monotonic()
        if isinstance(prompt, EngineHashes):
            return self._score_hashes(prompt, model, pods, now_s)
        matches = {
            block_size: self._matches(prompt, block_size, index, pods.values(), made.setdefault(block_size, []))
            for block_size, index in model.indexes.items()
        }  # fmt: skip
        scores = [PodScore(pod, self._ranks(prompt, ranks, matches, now_s)) for pod, ranks in pods.items()]
        scores.sort(key=lambda pod: (-pod.ranks[0].score, pod.pod))
        model.asked += 1
        model.unmatched = 0 if scores and scores[0].ranks[0].match.matched_blocks else model.unmatched + 1
        return scores

    def asked(self, model: str) -> tuple[int, int]:
        """How many scores were asked for, and how many since the last with a match. Raises KeyError for an unknown model."""
        return self._models[model].asked, self._models[model].unmatched

    def trace(self, prompt: Prompt | EngineHashes) -> list[PodSeen]:
        """Every pod of the model like `score`, and what is known of the block at which each rank's match ends. Raises KeyError."""
        model = self._models[prompt.model]
        now_s = time.monotonic()
        traces: dict[int, _Trace] = {}
        if isinstance(prompt, Prompt):
            traces = {block_size: self._trace(prompt, block_size, index, model.pods.values()) for block_size, index in model.indexes.items()}
        pods = []
        for pod, ranks in model.pods.items():
            found = []
            for rank, view in ranks.items():
                trace = traces.get(view.block_size or 0) or self._trace_hashes(prompt, model, pod, rank, view)
                found.append(self._rank_seen(prompt, rank, view, trace, now_s))
            pods.append(PodSeen(pod, sorted(found, key=lambda seen: (-seen.score, seen.rank))))
        return sorted(pods, key=lambda pod: (-pod.ranks[0].score, pod.pod))

    # By engine hashes

    def why_no_hashes(self, model: str) -> str | None:
        """Why this model cannot be asked about by engine hashes, in words; None where it can. Raises KeyError for an unknown model."""
        if self.mapped_key is not None:
            return None
        if not self._follows_hashes:
            return "this service keeps no engine hashes: start it with --engine-hashes"
        pods = self._models[model].pods
        partial = [pod for pod, ranks in pods.items() if any(view.hashes is not None and not view.hashes.is_complete for view in ranks.values())]
        return f"the indexer of {partial[0]} does not log engine hashes: start indexers with --engine-hashes too" if partial else None

    def _score_hashes(self, asked: EngineHashes, model: _Model, pods: Mapping[str, Mapping[int, _StreamView]], now_s: float) -> list[PodScore]:
        scores = []
        for pod, ranks in pods.items():
            found = []
            for rank, view in ranks.items():
                trace = self._trace_hashes(asked, model, pod, rank, view)
                if trace is None or view.holder is None or view.block_size is None:
                    found.append(RankScore(rank, NO_MATCH, 0.0, None, 0, view.trust_at(now_s)))
                    continue
                match = match_of(view.holder, trace.steps)
                score = score_of(match, tokens_at(asked, view.block_size), view.block_size, self._weights)
                found.append(RankScore(rank, match, score, view.block_size, len(asked.hashes), view.trust_at(now_s)))
            scores.append(PodScore(pod, sorted(found, key=lambda r: (-r.score, r.rank))))
        return sorted(scores, key=lambda pod: (-pod.ranks[0].score, pod.pod))

    def _trace_hashes(self, asked: Prompt | EngineHashes, model: _Model, pod: str, rank: int, view: _StreamView) -> _Trace | None:
        """The walk of one stream by its own names."""
        if view.block_size is None or view.holder is None or isinstance(asked, Prompt):
            return None
        keys = [] if view.hashes is None else view.hashes.keys_of(asked.hashes)
        index = model.indexes[view.block_size]
        return _Trace(index, index.walk(1 << view.holder, [keys]), keys)

    def _trace(self, prompt: Prompt, block_size: int, index: PrefixIndex, pods: Collection[Mapping[int, _StreamView]]) -> _Trace:
        holders = [view.holder for ranks in pods for view in ranks.values() if view.block_size == block_size and view.holder is not None]
        steps = index.walk(sum(1 << holder for holder in holders), self._runs(prompt, block_size, []))
        keys = list(islice(chain.from_iterable(self._runs(prompt, block_size, [])), steps[-1][0] + 1))
        return _Trace(index, steps, keys)

    def _rank_seen(self, prompt: Prompt | EngineHashes, rank: int, view: _StreamView, trace: _Trace | None, now_s: float) -> RankSeen:
        trust = view.trust_at(now_s)
        if trace is None or view.block_size is None or view.holder is None:
            return RankSeen(rank, trust, None, 0, [], 0.0, has_other_seed=view.has_other_seed)
        length = tokens_at(prompt, view.block_size)
        match = match_of(view.holder, trace.steps)
        key = trace.keys[match.matched_blocks] if match.matched_blocks < len(trace.keys) else None
        return RankSeen(
            rank,
            trust,
            view.block_size,
            usable_blocks(length, view.block_size),
            [(tier.word, blocks) for tier, blocks in runs_of(view.holder, trace.steps)],
            score_of(match, length, view.block_size, self._weights),
            is_remote=key is not None and trace.index.holds(view.holder, Tier.REMOTE, key),
            removal=None if key is None else view.removals.find(key),
            has_other_seed=view.has_other_seed,
        )

    def _matches(
        self, prompt: Prompt, block_size: int, index: PrefixIndex, pods: Collection[Mapping[int, _StreamView]], made: list[int]
    ) -> dict[int, Match]:
        """Holder → match, for every stream of these pods with this block size."""
        holders = [view.holder for ranks in pods for view in ranks.values() if view.block_size == block_size and view.holder is not None]
        steps = index.walk(sum(1 << holder for holder in holders), self._runs(prompt, block_size, made))
        return matches_of(holders, steps)

    def _runs(self, prompt: Prompt, block_size: int, made: list[int]) -> Iterator[list[int]]:
        blocks = usable_blocks(prompt.length, block_size)
        key = root_key(prompt.model, prompt.lora_name, self._hash_seed)
        for start in range(0, blocks, RUN_BLOCKS):
            keys = chain_keys(key, prompt.tokens, block_size, prompt.extra_keys, start, min(start + RUN_BLOCKS, blocks))
            made += keys
            yield keys
            key = keys[-1]

    def _ranks(self, prompt: Prompt, ranks: Mapping[int, _StreamView], matches: Mapping[int, Mapping[int, Match]], now_s: float) -> list[RankScore]:
        """Those of one pod, best first."""
        found = []
        length = prompt.length
        for rank, view in ranks.items():
            trust, block_size, holder = view.trust_at(now_s), view.block_size, view.holder
            if block_size is None or holder is None:
                found.append(RankScore(rank, NO_MATCH, 0.0, None, 0, trust))
                continue
            match = matches[block_size][holder]
            score = score_of(match, length, block_size, self._weights)
            found.append(RankScore(rank, match, score, block_size, usable_blocks(length, block_size), trust))
        if len(found) > 1:
            found.sort(key=lambda rank: (-rank.score, rank.rank))
        return found


def ranks_by_number(ranks: Sequence[RankScore]) -> dict[str, int]:
    """Each rank's matched blocks, by rank."""
    return {str(rank.rank): rank.match.matched_blocks for rank in sorted(ranks, key=lambda rank: rank.rank)}
