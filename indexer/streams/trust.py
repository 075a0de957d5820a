"""How far a stream's content can be relied on: its phase, what moves it to another, and the trust that follows. Pure.

    UNVERIFIED ──▶ RECOVERING ◀──▶ CONFIRMED     the engine can be asked to replay
    NO_REPLAY_WAITING ──▶ NO_REPLAY                          it cannot: no replay endpoint, or one that did not answer on this connection
    EXPIRED                                      away for too long, dropped; a new connection begins again

Besides the phase there is whether the content is complete, as far as is known. Signals that say nothing of a phase leave it as it is.
"""

from enum import Enum, auto

from msgspec import Struct

from indexer.core.names import Trust


class Phase(Enum):
    """What is known of the present connection."""

    UNVERIFIED = auto()
    """Something is held from before, and another process of the engine may answer now."""
    RECOVERING = auto()
    """Nothing held is another process's, but batches may be missing until a replay ends."""
    CONFIRMED = auto()
    """What is held joins what the engine publishes now."""
    NO_REPLAY_WAITING = auto()
    """No replay is possible, and no batch of this connection was applied yet."""
    NO_REPLAY = auto()
    """No replay is possible; what is held counts."""
    EXPIRED = auto()
    """The engine stayed away, everything was dropped."""


class Signal(Enum):
    """What happens to a stream."""

    CONNECTED = auto()
    """A new connection of an engine with a replay endpoint; something is held."""
    CONNECTED_EMPTY = auto()
    """The same, with nothing held."""
    CONNECTED_NO_REPLAY = auto()
    """A new connection of an engine without a replay endpoint; something is held."""
    CONNECTED_NO_REPLAY_EMPTY = auto()
    """The same, with nothing held: nothing that is known can be wrong."""
    RECOVERY_STARTED = auto()
    VERIFIED = auto()
    """A reply shows that the same process answers."""
    REPLAYED = auto()
    """A replay came to its end."""
    REPLAYED_EMPTY = auto()
    """The same, and there was nothing to replay."""
    GAVE_UP = auto()
    """The replay endpoint does not answer; something is held."""
    GAVE_UP_EMPTY = auto()
    LIVE_BATCH = auto()
    """A live batch of this connection was applied."""
    GAP = auto()
    """Batches are missing that may be replayed."""
    FOUND = auto()
    """After a takeover the recorded batch was found in what was kept, so that nothing is missing."""
    HISTORY_LOST = auto()
    """Batches are missing for good."""
    WHOLE = auto()
    """All that the engine holds is known: from its first batch on, or since its cache was cleared."""
    OFFLOADED = auto()
    """The engine keeps blocks below the gpu, and only the gpu was known to be empty."""
    REFUSED = auto()
    """A message that may have changed what is held could not be read."""
    FORGOTTEN = auto()
    """Nothing of what was applied counts any more."""
    FAILED = auto()
    """An internal error: start again with nothing."""
    EXPIRED = auto()


# Read for every batch, and an enum's member costs as much to name as a look-up in a dict.
_UNVERIFIED, _RECOVERING, _CONFIRMED = Phase.UNVERIFIED, Phase.RECOVERING, Phase.CONFIRMED
_NO_REPLAY_WAITING, _NO_REPLAY, _EXPIRED = Phase.NO_REPLAY_WAITING, Phase.NO_REPLAY, Phase.EXPIRED
_LIVE, _PARTIAL, _STALE = Trust.LIVE, Trust.PARTIAL, Trust.STALE

CONFIRMED_PHASES = (_CONFIRMED, _NO_REPLAY)
"""Those in which what is held counts on the present connection."""

TRANSITIONS: dict[Signal, dict[Phase, Phase]] = {
    Signal.CONNECTED: dict.fromkeys(Phase, _UNVERIFIED),
    Signal.CONNECTED_EMPTY: dict.fromkeys(Phase, _RECOVERING),
    Signal.CONNECTED_NO_REPLAY: dict.fromkeys(Phase, _NO_REPLAY_WAITING),
    Signal.CONNECTED_NO_REPLAY_EMPTY: dict.fromkeys(Phase, _NO_REPLAY),
    Signal.RECOVERY_STARTED: {_CONFIRMED: _RECOVERING},
    Signal.VERIFIED: {_UNVERIFIED: _RECOVERING},
    Signal.REPLAYED: {_UNVERIFIED: _CONFIRMED, _RECOVERING: _CONFIRMED},
    Signal.REPLAYED_EMPTY: {_UNVERIFIED: _CONFIRMED, _RECOVERING: _CONFIRMED},
    Signal.GAVE_UP: {_UNVERIFIED: _NO_REPLAY_WAITING, _RECOVERING: _NO_REPLAY_WAITING, _CONFIRMED: _NO_REPLAY_WAITING},
    Signal.GAVE_UP_EMPTY: {_UNVERIFIED: _NO_REPLAY, _RECOVERING: _NO_REPLAY, _CONFIRMED: _NO_REPLAY},
    Signal.LIVE_BATCH: {_UNVERIFIED: _CONFIRMED, _RECOVERING: _CONFIRMED, _NO_REPLAY_WAITING: _NO_REPLAY},
    Signal.GAP: {_CONFIRMED: _RECOVERING},
    Signal.FOUND: {_NO_REPLAY_WAITING: _NO_REPLAY},
    Signal.FORGOTTEN: {_UNVERIFIED: _RECOVERING},
    Signal.FAILED: {_UNVERIFIED: _RECOVERING, _CONFIRMED: _RECOVERING, _NO_REPLAY: _NO_REPLAY_WAITING},
    Signal.EXPIRED: dict.fromkeys(Phase, _EXPIRED),
}
"""Signal → phase before → phase after; a phase that is not there stays as it is."""

COMPLETE_AFTER: dict[Signal, bool] = {
    Signal.CONNECTED_NO_REPLAY: False,
    Signal.CONNECTED_NO_REPLAY_EMPTY: False,
    Signal.REPLAYED_EMPTY: True,
    Signal.GAVE_UP: False,
    Signal.GAVE_UP_EMPTY: False,
    Signal.HISTORY_LOST: False,
    Signal.WHOLE: True,
    Signal.OFFLOADED: False,
    Signal.REFUSED: False,
    Signal.FORGOTTEN: False,
    Signal.FAILED: False,
    Signal.EXPIRED: False,
}
"""Signal → whether the content is complete after it; others leave it unchanged."""


class TrustState(Struct, frozen=True):
    """A stream's phase, and whether its content is complete as far as is known. Never changed: `after` makes the next one."""

    phase: Phase = Phase.UNVERIFIED
    is_complete: bool = False

    def after(self, signal: Signal) -> "TrustState":
        """What this becomes by a signal."""
        return TrustState(TRANSITIONS.get(signal, {}).get(self.phase, self.phase), COMPLETE_AFTER.get(signal, self.is_complete))

    @property
    def is_confirmed(self) -> bool:
        """Whether what is held counts on the present connection."""
        return self.phase in CONFIRMED_PHASES

    @property
    def is_verified(self) -> bool:
        """Whether what is held is known to be of this process, or cannot be verified."""
        return self.phase is not _UNVERIFIED

    @property
    def can_be_asked(self) -> bool:
        """Whether the engine may still answer a replay, if it has an endpoint for it."""
        return self.phase is not _NO_REPLAY_WAITING and self.phase is not _NO_REPLAY

    def trust(self, *, is_current: bool) -> Trust:
        """`is_current`: the connection that this is about is up."""
        phase = self.phase
        if is_current and phase in CONFIRMED_PHASES:
            return _LIVE if self.is_complete else _PARTIAL
        return Trust.EXPIRED if phase is _EXPIRED else _STALE
