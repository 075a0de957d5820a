"""Looks a long query up in pieces before it is answered, so that no step takes long. Pure.

The look-up that follows takes what was prepared where it still counts: in the same index, for holders that took part. Else it walks itself.
"""

from collections.abc import Iterator, Sequence

from scorer_api.index.engine_hashes import EngineHashes, PreparedHashes
from scorer_api.index.hits import Span
from scorer_api.index.mask_walk import PreparedWalk
from scorer_api.index.prefix_index import PrefixIndex
from scorer_api.index.prompt import RUN_BLOCKS, PromptKeys
from scorer_api.index.state import IndexedModel, IndexedStream


def prepare_prompt(keys: PromptKeys, model: IndexedModel) -> Iterator[None]:
    """Compute keys in each block size of the model and walk along them, a run at a time."""
    for cut, index in list(model.indexes.items()):
        walk = _WalkInPieces(
            index, index.mask, needs_spans=any(_has_rule(s) for ranks in model.pods.values() for s in ranks.values() if s.cut == cut)
        )
        for run in keys.runs(*cut):
            walk.follow(run)
            yield
        keys.walks[cut] = walk.result()


def prepare_hashes(query: EngineHashes, model: IndexedModel) -> Iterator[None]:
    """Find each stream's keys for the hashes and walk along them, a run at a time."""
    streams = [stream for ranks in model.pods.values() for stream in ranks.values()]
    for stream in streams:
        holders, hashes = stream.holders, stream.hashes
        if holders is None or hashes is None:
            continue
        walk = _WalkInPieces(holders.index, holders.mask, needs_spans=_has_rule(stream))
        keys: list[int] = []
        for start in range(0, len(query.hashes), RUN_BLOCKS):
            wanted = query.hashes[start : start + RUN_BLOCKS]
            found = hashes.keys_of(wanted)
            keys += found
            walk.follow(found)
            yield
            if len(found) < len(wanted):
                break
        query.prepared[id(holders)] = PreparedHashes(holders, keys, walk.result())


def _has_rule(stream: IndexedStream) -> bool:
    return stream.holders is not None and stream.holders.rule is not None


class _WalkInPieces:
    """`holders`: the mask of those that take part in it."""

    def __init__(self, index: PrefixIndex, holders: int, *, needs_spans: bool) -> None:
        self._index = index
        self._holders = holders
        self._removed_holders = index.removed_holders
        self._spans: list[Span] | None = [] if needs_spans else None
        self._walk = index.begin_walk(self._holders, self._spans)
        self._is_over = False

    def follow(self, keys: Sequence[int]) -> None:
        self._is_over = self._is_over or not self._walk.follow(keys)

    def result(self) -> PreparedWalk:
        steps = self._walk.steps if self._is_over else self._walk.end()
        return PreparedWalk(self._index, self._removed_holders, self._holders, steps, self._spans)
