"""Who owns which stream. Every indexer decides for itself, from what all can see in Redis; leases and fences see to it that one decision counts.

Of the living indexers one wins a stream by rendezvous hashing, up to an even share each: when one comes or goes hardly more streams move than
those that it wins or won. What an indexer does with a stream, decided again each second:

    it has it           hands it over where the winner asks for it, else keeps it
    has an owner        the winner asks for it; next in line, where the engine offers no replay, keeps the last frames for a takeover
    has no owner        the winner takes it; the others do so where it stays free for a whole lease: the winner does not know the engine

After an outage of Redis leases may be gone that owners have not had the time to renew, and so may members: nothing is taken for one lease. In a
Cluster each stream has its own outages, those of the node that holds it; while that is away the stream's owner is unknown, and no indexer takes it.
"""

from collections.abc import Collection
from enum import Enum, auto

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from indexer.core.names import StreamKey


class Duty(Enum):
    """What to do with a stream."""

    NOTHING = auto()
    KEEP = auto()
    """Go on as it is."""
    HAND_OVER = auto()
    STAND_BY = auto()
    """Subscribe and keep the last frames."""
    ASK = auto()
    """Subscribe and claim it, again and again, until its owner hands it over."""
    TAKE = auto()
    """Subscribe and claim it, if it is still free."""


class ObservedStream(Struct, frozen=True):
    """What is known of a stream. `owner`: who has the lease. `wanted_by`: who asks for it, where it runs here. `outage_ended_s`: when what holds the
    stream was last away. `is_hidden`: it is away."""

    stream: StreamKey
    has_replay: bool = True
    runs_here: bool = False
    stands_by: bool = False
    owner: str | None = None
    wanted_by: str | None = None
    outage_ended_s: float = float("-inf")
    is_hidden: bool = False


def ranking(stream: StreamKey, members: Collection[str]) -> list[str]:
    """These members, in the order in which the stream falls to them."""
    name = f"{stream.model}\0{stream.pod}\0{stream.rank}\0"
    return sorted(members, key=lambda member: (-xxh3_64_intdigest((name + member).encode()), member))


def fair_rankings(streams: Collection[StreamKey], members: Collection[str]) -> dict[StreamKey, list[str]]:
    """For each stream the members in the order in which it falls to them.

    No member is first for more than an even share, rounded up: where the hash would have it so, the next in line is.
    """
    most = -(-len(streams) // max(1, len(members)))
    left = dict.fromkeys(members, most)
    orders = {}
    for stream in sorted(streams, key=lambda stream: (stream.model, stream.pod, stream.rank)):
        order = ranking(stream, members)
        winner = next(member for member in order if left[member])
        left[winner] -= 1
        orders[stream] = [winner, *(member for member in order if member != winner)]
    return orders


class Assignment:
    """One indexer's decisions. `me`: its name among the members. The caller brings the time, in seconds."""

    def __init__(self, me: str, lease_s: float) -> None:
        self.me = me
        self._lease_s = lease_s
        self._free_since_s: dict[StreamKey, float] = {}

    def decide(self, streams: Collection[ObservedStream], members: Collection[str], now_s: float, outage_ended_s: float) -> dict[StreamKey, Duty]:
        """What to do with each stream that this indexer knows; hidden ones stay as they are."""
        free = {seen.stream for seen in streams if seen.owner is None and not seen.runs_here and not seen.is_hidden}
        self._free_since_s = {stream: self._free_since_s.get(stream, now_s) for stream in free}
        orders = fair_rankings([seen.stream for seen in streams], {*members, self.me})
        return {seen.stream: self._duty(seen, orders[seen.stream], now_s, outage_ended_s) for seen in streams}

    def _duty(self, seen: ObservedStream, order: list[str], now_s: float, outage_ended_s: float) -> Duty:
        winner, may_take = order[0], now_s - max(outage_ended_s, seen.outage_ended_s) >= self._lease_s
        if seen.is_hidden:
            return Duty.KEEP
        if seen.runs_here:
            return Duty.HAND_OVER if seen.wanted_by == winner != self.me else Duty.KEEP
        if seen.owner == self.me:
            return Duty.TAKE
        if may_take and winner == self.me:
            return Duty.ASK
        if may_take and seen.owner is None and now_s - self._free_since_s[seen.stream] > self._lease_s:
            return Duty.TAKE
        return Duty.STAND_BY if not seen.has_replay and self._is_next(seen, order) else Duty.NOTHING

    def _is_next(self, seen: ObservedStream, order: list[str]) -> bool:
        """Whether the stream falls to us should its owner die."""
        if seen.owner is None:
            return seen.stands_by or self.me in order[:2]
        return next(member for member in order if member != seen.owner) == self.me
