"""Which keys the blocks of an event cover, by its own tokens."""

from indexer.core.block_keys import chain_keys
from indexer.core.events import Stored


def told_covers(event: Stored, parent_key: int | None, key_size: int, width: int) -> dict[int, tuple[int, ...]]:
    """The last key that a block's tokens make → all that it covers, the last one first: of an event of blocks that cover `width` keys.

    They are those of the block that has this last key, which is made of all that comes before it. Links to parents need not lead through the parts of
    a larger block. `parent_key`: the one before the first block, None where it is not known.
    """
    run, left = divmod(event.block_size, key_size)
    if width < 2 or run < width or left or not event.tokens or parent_key is None:
        return {}
    keys = chain_keys(parent_key, event.tokens, key_size)
    return {keys[end - 1]: tuple(reversed(keys[end - width : end])) for end in range(run, len(keys) + 1, run)}
