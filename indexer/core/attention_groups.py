"""Which KV-cache group of an engine is indexed: one of full attention, since blocks of other groups say nothing about a prompt's whole prefix."""

from indexer.core.events import Stored

FULL_ATTENTION = frozenset({"full_attention", "mla_attention", "sink_full_attention"})


class AttentionGroups:
    """The groups that were announced. `indexed`: the one that counts, None before any was announced. `is_full`: group → whether of full attention."""

    def __init__(self, groups_max: int, indexed: int | None = None, is_full: dict[int, bool] | None = None) -> None:
        self._groups_max = groups_max
        self.indexed = indexed
        self.is_full = is_full or {}

    def is_indexed(self, event: Stored) -> bool:
        """Whether this event belongs to the indexed group. The first announcement of full attention says which one that is."""
        if event.group is None and event.kind is None:
            return True
        group = event.group or 0
        is_full = event.kind in FULL_ATTENTION or (event.kind is None and self.is_full.get(group, group == 0))
        if len(self.is_full) < self._groups_max:
            self.is_full[group] = is_full
        if is_full and self.indexed is None:
            self.indexed = group
        return is_full and group == self.indexed
