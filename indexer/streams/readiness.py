"""Whether a service is ready, and what is not as it should be, in words."""

from collections.abc import Iterable
from typing import Self

from msgspec import Struct, field
from msgspec.structs import replace

from indexer.compiled import ACTIVE
from indexer.core.names import StreamKey, Trust

# Reasons in an answer; of the others only the number is told.
REASONS_MAX = 50


class Readiness(Struct, frozen=True):
    """`status`: starting, ready or degraded. `reasons`: what is not as it should be, in words. `core`: the one in use, compiled or python."""

    status: str
    reasons: list[str]
    core: str = field(default_factory=lambda: ACTIVE)

    @property
    def is_ready(self) -> bool:
        return self.status != "starting"

    def shortened(self) -> Self:
        """With the first reasons, and how many more there are."""
        more = len(self.reasons) - REASONS_MAX
        return self if more <= 0 else replace(self, reasons=[*self.reasons[:REASONS_MAX], f"and {more} more"])


def failure_of(stream: StreamKey, trust: Trust, error: str | None) -> str | None:
    """What is not as it should be with a stream. A partial one that says no reason is as it should be: its engine has no replay."""
    if trust is Trust.LIVE or (trust is Trust.PARTIAL and not error):
        return None
    return f"pod {stream.pod} rank {stream.rank} is {trust}" + (f": {error}" if error else "")


def readiness(*, is_ready: bool, reasons: Iterable[str]) -> Readiness:
    """Each of the reasons is told once."""
    found = list(dict.fromkeys(reasons))
    if not is_ready:
        return Readiness("starting", found)
    return Readiness("degraded" if found else "ready", found)
