"""What one applied batch does to a stream."""

from msgspec import Struct

from indexer.core.events import Tier


class Names(Struct, frozen=True):
    """Which block keys engine hashes stand for, after a change. `gone`: those that stand for none any more."""

    keys: dict[int, int]
    gone: list[int]


class Change:
    """Final values, not steps: applying a change twice is the same as applying it once.

    `reload`: all that the stream held is void. `cleared`: the gpu tier is emptied. Both come before `touched`: per tier, block key → held
    afterwards or not. `sequence`: of the engine's batch, where that is known. `names`: what became of engine hashes, where that is told.
    """

    __slots__ = ("cleared", "names", "reload", "sequence", "touched")

    def __init__(self) -> None:
        self.reload = False
        self.cleared = False
        self.sequence: int | None = None
        self.names: Names | None = None
        self.touched: tuple[dict[int, bool], ...] = ({}, {}, {}, {}, {})  # one per tier, written out: made for every batch

    def clear_gpu(self) -> None:
        """Empty the gpu tier; what this change said of it before no longer counts."""
        self.cleared = True
        self.touched[Tier.GPU].clear()

    def __bool__(self) -> bool:
        return self.reload or self.cleared or any(self.touched)
