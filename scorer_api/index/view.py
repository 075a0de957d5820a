"""What a scorer knows and answers from: the models, their pods and streams, and a prefix index per (model, block size).

It is the store of the embedded mode: changes go straight into the index. A follower of the log writes to it in the same way, and exchanges what a
stream holds, once it has loaded it, for what it held before.
"""

import math
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol

from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.groups import CacheShape
from indexer.core.names import StreamKey, Trust
from indexer.core.store import StreamPosition
from scorer_api.index.engine_hashes import EngineHashes, FollowedHashes, HashKeys, KeyOf, OwnedHashes
from scorer_api.index.holders import Holders
from scorer_api.index.holding import Holding
from scorer_api.index.hot_prefixes import DEPTH_MAX, Cut, HotPrefixes
from scorer_api.index.lookup import Lookup, PodScore, held_tokens
from scorer_api.index.plain_pods import PackedScores, PlainScores, packed_scores, plain_pods, plain_scores
from scorer_api.index.pod_loads import PodLoads
from scorer_api.index.prefix_index import PrefixIndex
from scorer_api.index.preparation import prepare_hashes, prepare_prompt
from scorer_api.index.prompt import Prompt, PromptKeys, Query
from scorer_api.index.removals import Removals
from scorer_api.index.scoring import usable_blocks
from scorer_api.index.state import IndexedModel, IndexedStream
from scorer_api.index.traces import PodTrace

EMBEDDED = "embedded"


class Listener(Protocol):
    """Called with what streams hold, right after the index is updated."""

    def on_change(self, stream: StreamKey, change: Change) -> None: ...

    def on_load(self, stream: StreamKey, is_held: Callable[[int], bool]) -> None:
        """A follower loaded all that it holds at once. `is_held`: of a block key."""

    def on_drop(self, stream: StreamKey) -> None:
        """It holds nothing any more."""


def _monotonic_s() -> float:
    return time.monotonic()


class View:
    """Implements `indexer.core.store.Store`. `source`: the source of its changes, as responses name it. `clock`: by default the monotonic one."""

    has_limits = False
    needs_records = False

    def __init__(self, settings: Settings, source: str = EMBEDDED, *, clock: Callable[[], float] | None = None) -> None:
        self.source = source
        self._clock = clock or _monotonic_s
        self.loads = PodLoads()
        self.unready: set[tuple[str, str]] = set()
        """Model and name of each pod that is not ready, as discovery says."""
        self.listener: Listener | None = None
        self.mapped_key: Callable[[StreamKey], KeyOf | None] | None = None
        """Where the streams run in this process: the block keys of a stream's engine hashes."""
        self.hot = HotPrefixes(settings.hot_prefixes) if settings.hot_prefixes else None
        """Which prefixes are asked for; None where that is not counted."""
        self._models: dict[str, IndexedModel] = {}
        self._heartbeat_at_s: float | None = None
        self._hash_seed = settings.hash_seed
        self._weights = settings.tier_weights
        self._removals_max = settings.limits.explain.explain_removals_max
        self._follows_hashes = settings.engine_hashes and source != EMBEDDED

    # The store

    def open(self, stream: StreamKey) -> None:
        self.close(stream)
        model = self._models.setdefault(stream.model, IndexedModel())
        model.forget_plain()
        model.pods.setdefault(stream.pod, {})[stream.rank] = IndexedStream(Removals(self._removals_max), self._new_hashes(stream))

    def append(self, stream: StreamKey, shape: CacheShape | None, change: Change, position: StreamPosition | None = None) -> None:
        """Only blocks are indexed: the position of a stream is no part of any answer."""
        if shape is None or not change:
            return
        model, indexed = self._find(stream)
        holders = indexed.holders
        if holders is None or (holders.shape is not shape and holders.shape != shape):
            holders = self._fit(model, indexed, shape)
        if self._removals_max:
            indexed.removals.note(change, holders.held(Tier.GPU) if change.cleared else ())
        holders.apply(change)
        if indexed.hashes is not None:
            indexed.hashes.apply(change, holders)
        if self.listener is not None:
            self.listener.on_change(stream, change)

    def _fit(self, model: IndexedModel, indexed: IndexedStream, shape: CacheShape) -> Holders:
        """The holders of a stream that held nothing, or blocks that are cut in another way or of other groups."""
        if indexed.cut not in (None, shape.cut):
            self._empty(model, indexed)
        return model.holders_for(indexed, shape)

    def drop(self, stream: StreamKey, position: StreamPosition | None = None) -> None:
        self._empty(*self._find(stream))
        if self.listener is not None:
            self.listener.on_drop(stream)

    def set_trust(self, stream: StreamKey, trust: Trust, position: StreamPosition | None = None, *, until_s: float = math.inf) -> None:
        """`until_s`: from then on, by the monotonic clock, the stream is stale."""
        model, indexed = self._find(stream)
        indexed.trust, indexed.trusted_until_s = trust, until_s
        model.trusts += 1

    def close(self, stream: StreamKey) -> None:
        model = self._models.get(stream.model)
        if model is None or stream.rank not in model.pods.get(stream.pod, {}):
            return
        self._empty(model, model.pods[stream.pod].pop(stream.rank))
        if self.listener is not None:
            self.listener.on_drop(stream)
        if not model.pods[stream.pod]:
            del model.pods[stream.pod]
            self.loads.forget(stream.model, stream.pod)
            self.unready.discard((stream.model, stream.pod))
        if not model.pods:
            del self._models[stream.model]

    async def room(self, stream: StreamKey) -> None:
        """Changes are in the index at once."""

    def note_ready(self, model: str, pod: str, is_ready: bool) -> None:
        """Whether requests may go to a pod."""
        if is_ready or pod not in getattr(self._models.get(model), "pods", ()):
            self.unready.discard((model, pod))
        else:
            self.unready.add((model, pod))

    # What a follower needs besides

    def note_heartbeat(self, at_s: float) -> None:
        """An owner sent a heartbeat at this time of the monotonic clock."""
        self._heartbeat_at_s = at_s if self._heartbeat_at_s is None else max(self._heartbeat_at_s, at_s)

    def hold_apart(self, stream: StreamKey, shape: CacheShape) -> Holding:
        """Room in the index for what a stream will hold: in no answer until it is exchanged for what the stream holds now."""
        return Holding(Holders(self._find(stream)[0].indexes, shape), FollowedHashes() if self._follows_hashes else None)

    def exchange(self, stream: StreamKey, new: Holding | None) -> Holding | None:
        """Let the stream hold this, or nothing. Returns what it held, which the caller gives back in pieces: it may be large."""
        model, indexed = self._find(stream)
        before = model.exchange(indexed, None if new is None else new.holders)
        indexed.hashes = self._new_hashes(stream) if new is None else new.hashes
        indexed.removals.forget()
        if self.listener is not None:
            self.listener.on_load(stream, lambda key: self.held(stream, (key,)) > 0)
        return None if before is None else Holding(before)

    def note_seed(self, stream: StreamKey, hash_seed: str) -> None:
        """The hash seed that the stream's owner makes block keys with."""
        self._find(stream)[1].has_other_seed = hash_seed != self._hash_seed

    def note_dropped(self, stream: StreamKey, blocks: int) -> None:
        """How many of the last matched blocks the stream's engine computes again."""
        model, indexed = self._find(stream)
        indexed.dropped_blocks = blocks
        model.forget_plain()

    def _find(self, stream: StreamKey) -> tuple[IndexedModel, IndexedStream]:
        model = self._models[stream.model]
        return model, model.pods[stream.pod][stream.rank]

    def _new_hashes(self, stream: StreamKey) -> HashKeys | None:
        """Of a stream that holds nothing; None where requests by engine hashes are off."""
        if self._follows_hashes:
            return FollowedHashes()
        return OwnedHashes(lambda: None if self.mapped_key is None else self.mapped_key(stream)) if self.source == EMBEDDED else None

    def _empty(self, model: IndexedModel, indexed: IndexedStream) -> None:
        indexed.removals.forget()
        if isinstance(indexed.hashes, FollowedHashes):
            indexed.hashes = FollowedHashes()
        model.empty(indexed)

    # Lookups

    def keys_of(self, prompt: Prompt) -> PromptKeys:
        """The keys of a prompt, none of which is computed yet."""
        return PromptKeys(prompt, self._hash_seed)

    def prepare(self, query: Query) -> Iterator[None]:
        """Look a long query up in pieces, for the look-up that follows: the caller does something else in between.

        What changes in the index meanwhile may be part of the answer or not.
        """
        model = self._models.get(query.model)
        if model is None:
            return iter(())
        return prepare_hashes(query, model) if isinstance(query, EngineHashes) else prepare_prompt(query.prepared or self.keys_of(query), model)

    def look_up(self, query: Query, only: Collection[str] | None = None) -> Lookup:
        """Walk along the query's blocks, for every pod of the model or only these. Raises KeyError for an unknown model."""
        model = self._models[query.model]
        pods = model.pods if only is None else {pod: ranks for pod, ranks in model.pods.items() if pod in only}
        return Lookup(query, model, pods, self._hash_seed, self._weights, self._clock())

    def score(self, query: Query, only: Collection[str] | None = None) -> list[PodScore]:
        """Every pod of the model, or only these, best first, equal ones by name. Raises KeyError for an unknown model."""
        return self.scored(query, only)[1]

    def scored(self, query: Query, only: Collection[str] | None = None) -> tuple[Lookup, list[PodScore]]:
        """The same with the look-up. Prompts are counted. Raises KeyError for an unknown model."""
        lookup = self.look_up(query, only)
        scores = lookup.scores()
        if lookup.prompt_keys is not None:
            self._note_scored(
                self._models[query.model], query.model, lookup.prompt_keys, matched=bool(scores) and scores[0].ranks[0].match.matched_blocks > 0
            )
        return lookup, scores

    def score_plain(self, prompt: Prompt) -> PlainScores | PackedScores | None:
        """What `score` says of every pod; None where not all are plain. Raises KeyError for an unknown model."""
        model = self._models[prompt.model]
        pods = plain_pods(model)
        if pods is None:
            return None
        scores: PlainScores | PackedScores | None
        keys: PromptKeys | None = None
        if pods.packed is not None and prompt.prepared is None and not prompt.extra_keys and not prompt.media:
            trusts = pods.trusts(model.trusts, self._clock())
            scores = packed_scores(pods, pods.packed, prompt, self._hash_seed, self._weights[0], trusts)
        else:
            keys = prompt.prepared or self.keys_of(prompt)
            scores = plain_scores(pods, keys, self._weights[0], self._clock())
        if scores is not None:
            if keys is None and self.hot is not None:
                keys = self.keys_of(prompt)
            self._note_scored(model, prompt.model, keys, matched=scores.matched_blocks > 0)
        return scores

    def _note_scored(self, model: IndexedModel, name: str, keys: PromptKeys | None, *, matched: bool) -> None:
        """`keys`: needed where prefixes are counted."""
        model.prompts += 1
        model.unmatched = 0 if matched else model.unmatched + 1
        if self.hot is not None and keys is not None:
            self._note_asked(self.hot, name, keys, model.indexes)

    def _note_asked(self, hot: HotPrefixes, model: str, keys: PromptKeys, cuts: Iterable[Cut]) -> None:
        now_s = self._clock()
        for cut in cuts:
            usable = min(DEPTH_MAX, usable_blocks(keys.length, *cut))
            runs = keys.runs(*cut)
            while len(keys.computed(*cut)) < usable and next(runs, None) is not None:
                pass
            hot.note(model, cut, keys.computed(*cut)[:usable], now_s)

    def held_tokens(self, model: str, cut: Cut, keys: "array[int]") -> dict[str, int]:
        """Pod → how many tokens of the prompts that begin with these keys it holds now. Pods that hold none are left out."""
        known = self._models.get(model)
        index = None if known is None else known.indexes.get(cut)
        return {} if known is None or index is None else held_tokens(index, cut, known.pods, keys)

    def trace(self, query: Query) -> list[PodTrace]:
        """Every pod of the model like `score`, and what is known of the block at which each rank's match ends. Raises KeyError."""
        return self.look_up(query).traces()

    def prompt_counts(self, model: str) -> tuple[int, int]:
        """How many prompts were scored, and how many since the last one that matched. Raises KeyError for an unknown model."""
        return self._models[model].prompts, self._models[model].unmatched

    def shape(self, stream: StreamKey) -> CacheShape | None:
        """How the stream's blocks are cut; None while it holds nothing."""
        model = self._models.get(stream.model)
        indexed = None if model is None else model.pods.get(stream.pod, {}).get(stream.rank)
        return None if indexed is None or indexed.holders is None else indexed.holders.shape

    def held(self, stream: StreamKey, keys: Iterable[int]) -> int:
        """How many of these blocks the stream holds now in its own tiers."""
        model = self._models.get(stream.model)
        indexed = None if model is None else model.pods.get(stream.pod, {}).get(stream.rank)
        return 0 if model is None or indexed is None else model.count_held(indexed, keys)

    # What is known

    @property
    def age_s(self) -> float:
        """Age of the newest heartbeat of any owner."""
        return 0.0 if self._heartbeat_at_s is None else max(0.0, self._clock() - self._heartbeat_at_s)

    def trust(self, stream: StreamKey) -> Trust:
        """How far the stream's content can be relied on now."""
        return self._find(stream)[1].trust_at(self._clock())

    def trusts(self, model: str) -> dict[str, Trust]:
        """How far each pod of a model can be relied on now, by its best rank. Raises KeyError for an unknown model."""
        now_s = self._clock()
        order = list(Trust)
        pods = self._models[model].pods.items()
        return {pod: min((indexed.trust_at(now_s) for indexed in ranks.values()), key=order.index) for pod, ranks in pods}

    def count(self, trust: Trust) -> int:
        """How many streams can be relied on so far, now."""
        now_s = self._clock()
        streams = (indexed for model in self._models.values() for ranks in model.pods.values() for indexed in ranks.values())
        return sum(indexed.trust_at(now_s) is trust for indexed in streams)

    def count_streams(self, model: str) -> int:
        """How many there are of this model."""
        return sum(map(len, self._models[model].pods.values())) if model in self._models else 0

    def cuts(self, model: str) -> list[tuple[int, int]]:
        """How the blocks of a model are cut, see `CacheShape.cut`; nothing where none is held."""
        return list(self._models[model].indexes) if model in self._models else []

    def are_held(self, model: str, block_size: int, keys: Sequence[int]) -> list[bool]:
        """Whether any stream holds each of these blocks in a tier of its own."""
        index = self._models[model].indexes.get((block_size, 0)) if model in self._models else None
        if index is None:
            return [False] * len(keys)
        return [mask > 0 for start, end, mask in index.spans(keys) for _ in range(start, end)]

    def count_blocks(self, model: str) -> int:
        """How many blocks of a model are held in any tier."""
        return sum(index.blocks for index in self._models[model].indexes.values()) if model in self._models else 0

    def has_model(self, model: str) -> bool:
        """Whether a pod of it is registered."""
        return model in self._models

    def models(self) -> dict[str, list[str]]:
        """Every model with its pods."""
        return {name: list(model.pods) for name, model in self._models.items()}

    @property
    def indexes(self) -> Iterator[PrefixIndex]:
        """Every index there is."""
        return (index for model in self._models.values() for index in model.indexes.values())

    def why_no_hashes(self, model: str) -> str | None:
        """Why this model cannot be asked about by engine hashes, in words; None where it can. Raises KeyError for an unknown model."""
        if self.mapped_key is not None:
            return None
        if not self._follows_hashes:
            return "this service keeps no engine hashes: start it with --engine-hashes"
        pods = self._models[model].pods
        partial = [pod for pod, ranks in pods.items() if any(s.hashes is not None and not s.hashes.is_complete for s in ranks.values())]
        return f"the indexer of {partial[0]} does not log engine hashes: start indexers with --engine-hashes too" if partial else None
