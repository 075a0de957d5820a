"""Which registered pods have been away for so long that they are taken to be gone. Pure: the caller brings the time."""

from collections.abc import Mapping

# A pod that is away for longer than the limit is noticed within this part of it, and within this time.
LOOK_PART = 0.25
LOOK_MAX_S = 30.0


class DeadRegistrations:
    """`expiry_s`: how long a pod may be away; 0 for as long as it wants."""

    def __init__(self, expiry_s: float) -> None:
        self._expiry_s = expiry_s
        self._away_since_s: dict[str, float] = {}

    @property
    def is_on(self) -> bool:
        return self._expiry_s > 0

    @property
    def look_s(self) -> float:
        """The pause between two looks."""
        return min(LOOK_PART * self._expiry_s, LOOK_MAX_S)

    def dead(self, connected: Mapping[str, bool], now_s: float) -> list[str]:
        """Those that have been away for too long. `connected`: every registered pod that this process speaks for, and whether a stream of it is."""
        self._away_since_s = {pod: self._away_since_s.get(pod, now_s) for pod, is_connected in connected.items() if not is_connected}
        return [pod for pod, since_s in self._away_since_s.items() if now_s - since_s >= self._expiry_s]

    def note_alive(self, pod: str) -> None:
        """It was registered again, or is connected to somebody else."""
        self._away_since_s.pop(pod, None)
