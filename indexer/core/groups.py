"""The KV-cache groups of one engine: what each of them caches, and in blocks of which size.

A model with several kinds of attention announces its blocks once for each group of layers. What of them makes a hit depends on the kind
(docs/explanation/wire-format.md, "Groups"). Nothing of a group is bound by its first event: kinds and sizes are learned from whatever tells them, and
revised by what tells more.
"""

from collections.abc import Collection, Iterable, Iterator
from enum import StrEnum
from math import gcd, lcm
from typing import Any

import msgspec
from msgspec import Struct

from indexer.core.block_keys import TOKEN_BYTES
from indexer.core.events import Event, Stored, Tier
from indexer.errors import Refused


class Kind(StrEnum):
    """What blocks of a group have to be there for a hit of n tokens."""

    FULL = "full"
    """All blocks up to n."""
    WINDOW = "window"
    """The last ones before n, as far as the window goes."""
    STATE = "state"
    """The one that ends at n: a recurrent state (mamba, short convolutions, gated delta nets)."""
    CHUNKED = "chunked"
    """Those of the chunk in which n lies. How long a chunk is nobody tells, so it is not asked for."""
    OTHER = "other"
    """A kind that this release does not know: it is not asked for."""
    UNKNOWN = "unknown"
    """No event told."""


KIND_OF_WORD = {
    "full_attention": Kind.FULL,
    "mla_attention": Kind.FULL,
    "sink_full_attention": Kind.FULL,
    "sliding_window": Kind.WINDOW,
    "sliding_window_mla": Kind.WINDOW,
    "chunked_local_attention": Kind.CHUNKED,
    "mamba": Kind.STATE,
}
"""vLLM's words, from 0.22 on."""

UNDECIDED = {
    "chunk_size": "chunked local attention, whose chunk size no engine tells",
    "group_kind": "a KV-cache group of a kind that is not known",
    "window_blocks": "only sliding windows, of which the engine announces some blocks without saying which",
}
"""Words for what engines do not tell of their KV-cache groups, so that they may reuse more or less than is known."""

# Events of one engine say one of a few things of their groups.
HEARD_MAX = 4_096

NO_GROUP = -1
"""The number of a lead group that is none: where no group's blocks are as small as the distance of the keys."""

LEAD = 0
"""The slot whose blocks are the cheapest to hold."""


class Group(Struct, frozen=True, array_like=True):
    """One group. `number`: as the engine counts them. `block_size` and `window`: in tokens, None where they are not known."""

    number: int
    kind: Kind = Kind.UNKNOWN
    block_size: int | None = None
    window: int | None = None
    is_proven: bool = False
    """Whether an event of several blocks told the size: a partial block may look like a whole one of another size."""
    is_sparse: bool = False
    """Whether it announces fewer hashes than its tokens have blocks: then it is not full attention."""


class CacheShape(Struct, frozen=True, array_like=True):
    """How an engine's blocks are cut. `block_size`: tokens between two block keys, which divides the block size of every group. `groups`: by slot;
    the blocks of `LEAD` have exactly that size. `offload_block_size`: tiers below the gpu are read in multiples of so many tokens; None where they
    are read block by block."""

    block_size: int
    groups: tuple[Group, ...] = ()
    offload_block_size: int | None = None
    lookahead: int = 0
    """How many tokens behind a block are part of its key."""
    reads_whole_prompts: bool = False
    """Whether a hit below the gpu may end with the prompt itself: vLLM's OffloadingConnector loads such a block and computes its last token again."""

    @property
    def cut(self) -> tuple[int, int]:
        """What the keys of all blocks have in common: tokens between two keys, and tokens behind a block that are part of its key."""
        return self.block_size, self.lookahead

    @property
    def is_plain(self) -> bool:
        """Whether a hit is the longest prefix that the lead group holds."""
        return len(self.groups) < 2 and not self.offload_block_size and all(group.kind in (Kind.FULL, Kind.UNKNOWN) for group in self.groups)

    @property
    def alignment(self) -> int:
        """Hits are multiples of so many tokens: the least common multiple of the groups' block sizes."""
        return lcm(self.block_size, *(group.block_size or 1 for group in self.groups))


class Groups:
    """Which slot each group has. `shape`: None before any group's block size is known.

    Of the shape, which each batch asks for: `key_size`, tokens between two block keys, 0 without a shape; `lookahead`, how many tokens behind a block
    are part of its key; `are_several`, whether blocks are announced by group.
    """

    def __init__(self, groups_max: int, offload_block_size: int | None = None) -> None:
        self._groups_max = groups_max
        self._offload_block_size = offload_block_size
        self._set_shape(None)
        self.other_block_size: int | None = None
        """Of blocks that were passed over since their group's are of another size."""
        self.undecided: tuple[str, ...] = ()
        """Why hits may be shorter than what is known: see UNDECIDED."""
        self._lookahead = 0
        self._reads_whole_prompts = False
        self._known: dict[int, Group] = {}
        self._slots: dict[int, int] = {}
        self._seen: dict[tuple[int | None, str | None, int | None, int, int], int] = {}
        """What events with tokens say of their group → its slot: those that teach nothing new."""
        self._heard: set[tuple[int | None, str | None, int | None, int, bool, bool]] = set()
        """The same of other events."""

    def _set_shape(self, shape: CacheShape | None) -> None:
        self._said: tuple[Any, ...] | None = None
        """What `leads` was asked for last, while the answer is the same."""
        self._leads = 0
        self.shape = shape
        self.key_size, self.lookahead, self.are_several = (0, 0, False) if shape is None else (*shape.cut, len(shape.groups) > 1)

    def restore(self, shape: CacheShape | None, unsized: Iterable[Group]) -> None:
        """Go on from what was known. `unsized`: groups of which no block size is known."""
        self._set_shape(shape)
        self._lookahead = self.lookahead
        self._reads_whole_prompts = shape is not None and shape.reads_whole_prompts
        sized = () if shape is None else shape.groups
        self._known = {group.number: group for group in (*sized, *unsized) if group.number != NO_GROUP}
        self._slots = {group.number: slot for slot, group in enumerate(sized)}
        self._seen.clear()
        self._said = None
        self.undecided = _undecided(self._known.values())

    @property
    def unsized(self) -> tuple[Group, ...]:
        """Groups of which no block size is known."""
        return tuple(group for number, group in self._known.items() if number not in self._slots)

    @property
    def known(self) -> Iterator[Group]:
        """All groups, in the order in which they were announced."""
        return iter(self._known.values())

    def slot_of(self, number: int | None) -> int | None:
        """The slot of a group; None for one that holds nothing. An event without a number is the main group's."""
        return self._main_slot() if number is None else self._slots.get(number)

    def number_of(self, number: int | None) -> int:
        """The number of the group that an event names by this."""
        if number is not None:
            return number
        slot = self._main_slot()
        return 0 if slot is None else self.number_in(slot)

    def number_in(self, slot: int) -> int:
        """The number of the group that has a slot."""
        assert self.shape is not None, "a slot belongs to a shape"
        return self.shape.groups[slot].number

    def width(self, slot: int, tokens: int = 0) -> int:
        """How many block keys a block of so many tokens covers, or one of the group's own size."""
        group = self.shape.groups[slot] if self.shape is not None else Group(0)
        size = tokens or group.block_size or self.key_size
        return 1 if group.kind is Kind.STATE or size % self.key_size else size // self.key_size

    def _main_slot(self) -> int | None:
        if self.shape is None:
            return None
        return next((slot for slot, group in enumerate(self.shape.groups) if group.kind is Kind.FULL), LEAD)

    def seen(self, event: Stored) -> int | None:
        """The slot of an event that announces blocks on the gpu with their tokens, where it teaches nothing new."""
        return self._seen.get((event.group, event.kind, event.window, event.block_size, event.lookahead))

    def leads(self, said: tuple[Any, ...]) -> int:
        """Bits of what of this, see `PlainEvents`, is said of the lead group and teaches nothing new."""
        if said is not self._said:
            slots = [self._seen.get(each) if type(each) is tuple else self.slot_of(each) for each in said]
            self._said, self._leads = said, sum(1 << number for number, slot in enumerate(slots) if slot == LEAD)
        return self._leads

    def has_heard(self, event: Stored) -> bool:
        """Whether an event that names blocks by their hashes teaches nothing new, as far as is remembered."""
        said = (event.group, event.kind, event.window, event.block_size, event.tier is Tier.GPU, bool(event.sparse_tokens))
        if said in self._heard:
            return True
        if len(self._heard) >= HEARD_MAX:
            self._heard.clear()
        self._heard.add(said)
        return False

    def note_offloading(self, event: Stored) -> None:
        """Learn from an announcement below the gpu: vLLM's OffloadingConnector names the group, and never the extra keys."""
        if self._reads_whole_prompts or event.group is None or event.lists_extra_keys or (event.block_size and not event.tokens):
            return
        self._reads_whole_prompts = True
        if self.shape is not None:
            self._set_shape(msgspec.structs.replace(self.shape, reads_whole_prompts=True))

    def learn(self, events: Iterable[Event]) -> CacheShape | None:
        """Learn from a batch. Returns the former shape where what is held in it does not fit the new one, else None."""
        for event in events:
            if isinstance(event, Stored):
                self._learn_group(event)
        self.undecided = _undecided(self._known.values())
        return self._reshape()

    def _learn_group(self, event: Stored) -> None:
        number = self.number_of(event.group)
        group = self._known.get(number)
        if group is None:
            if len(self._known) >= self._groups_max:
                return
            group = Group(number)
        kind, window = group.kind, group.window
        if event.kind is not None:
            kind = KIND_OF_WORD.get(event.kind, Kind.OTHER)
            window = event.window or (group.window if kind is group.kind else None)  # what is left out now was told before
            if kind is Kind.WINDOW and not window:
                kind = Kind.OTHER
        tokens = len(event.tokens) // TOKEN_BYTES or event.sparse_tokens
        size, is_proven = group.block_size, group.is_proven
        if event.tier is Tier.GPU and tokens:
            self._lookahead = max(self._lookahead, event.lookahead)
            if tokens > event.block_size:
                size, is_proven = event.block_size, True
            elif not is_proven:
                size = max(size or 0, event.block_size)
        self._known[number] = Group(number, kind, size, window, is_proven, group.is_sparse or bool(event.sparse_tokens))

    def _reshape(self) -> CacheShape | None:
        """Fit the shape to the groups. Returns the former one if its blocks are of other sizes."""
        self._seen.clear()
        self._said = None
        before = self.shape
        sized = [group for group in self._known.values() if group.block_size]
        if not sized:
            return None
        if before is not None and before.lookahead == self._lookahead and self._keeps_sizes(before):
            base = gcd(*(group.block_size or 0 for group in sized))
            if base % before.block_size == 0:
                new = [group for group in sized if group.number not in self._slots]
                self._set(before.block_size, [*(self._known.get(group.number, group) for group in before.groups), *new])
                return None
        self._set_anew(sized)
        return before

    def _keeps_sizes(self, before: CacheShape) -> bool:
        return all(self._known.get(group.number, group).block_size == group.block_size for group in before.groups)

    def _set_anew(self, sized: list[Group]) -> None:
        base = gcd(*(group.block_size or 0 for group in sized))
        lead = min(sized, key=lambda group: (group.block_size != base, group.kind is not Kind.FULL, group.kind is not Kind.UNKNOWN, group.is_sparse))
        if lead.block_size != base:
            lead = Group(NO_GROUP, Kind.OTHER, base)
        self._set(base, [lead, *(group for group in sized if group.number != lead.number)])

    def _set(self, base: int, groups: list[Group]) -> None:
        offload = self._offload_block_size
        offload = offload if offload and offload > base and offload % base == 0 else None
        self._set_shape(CacheShape(base, tuple(groups), offload, self._lookahead, self._reads_whole_prompts))
        self._slots = {group.number: slot for slot, group in enumerate(groups)}
        self._said = None

    def settle(self, event: Stored) -> int:
        """The slot of an event that `learn` has seen. Raises Refused for a block that is none of its group's."""
        slot = self.slot_of(event.group)
        if slot is None or self.shape is None:
            raise Refused("groups_max")
        if event.block_size != self.shape.groups[slot].block_size:
            self.other_block_size = event.block_size
            raise Refused("partial_block" if event.block_size < (self.shape.groups[slot].block_size or 0) else "block_size")
        self._seen[event.group, event.kind, event.window, event.block_size, event.lookahead] = slot
        self._said = None
        return slot


def _undecided(groups: Collection[Group]) -> tuple[str, ...]:
    """Words of UNDECIDED for what is not known of these groups."""
    kinds = {group.kind for group in groups}
    found = []
    if Kind.CHUNKED in kinds:
        found.append("chunk_size")
    if Kind.OTHER in kinds or (Kind.UNKNOWN in kinds and len(groups) > 1):
        found.append("group_kind")
    if Kind.FULL not in kinds and any(group.kind is Kind.WINDOW and group.is_sparse for group in groups):
        found.append("window_blocks")
    return tuple(found)
