"""One copy below the gpu under a hash that is not the engine's own: see `foreign_copies`."""

from msgspec import Struct


class ForeignCopy(Struct):
    """`keys`: of the blocks that it covers, its own first; None until the engine's block size is known, then made of `tokens` behind `root` or the
    copy `parent`."""

    parent: int | None
    root: int
    tokens: bytes
    place: int
    since_s: float
    keys: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Bytes that its tokens, or keys, take."""
        return len(self.tokens) + 8 * len(self.keys or ())
