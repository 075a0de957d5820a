"""Blocks that are larger than the distance of the keys: which keys they cover, and what the keys of their parts are made of."""

from msgspec import structs

from indexer.core.block_keys import TOKEN_BYTES, chain_keys, is_salt
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


def split_told(event: Stored, key_size: int, lookahead: int, *, has_parent_key: bool) -> tuple[Stored | None, Stored | None]:
    """The first blocks of an event, which has tokens: those whose keys it tells, with the extra keys of their parts by the part's number. And the
    others, which go by their hashes: a group of smaller blocks announces the same. None where there are none.

    In which parts of a larger block an image lies is not told. `lookahead`: of the stream.
    """
    if event.lookahead != lookahead:
        return None, event
    if not event.extra_keys or event.block_size == key_size:
        return event, None
    extra_keys, count = _part_extra_keys(event, key_size)
    if not count or not has_parent_key:
        return None, event
    if count == len(event.hashes):
        return structs.replace(event, extra_keys=extra_keys), None
    told, left = event.hashes[:count], event.hashes[count:]
    width = count * event.block_size * TOKEN_BYTES
    return (
        structs.replace(event, hashes=told, tokens=event.tokens[:width], extra_keys=extra_keys),
        structs.replace(event, hashes=left, tokens=event.tokens[width:], extra_keys=None, parent=told[-1]),
    )


def _part_extra_keys(event: Stored, key_size: int) -> tuple[dict[int, bytes], int]:
    """The folded extra keys of the parts of larger blocks, and how many of the first blocks they are known for. A cache salt belongs to the first
    part of a prompt, and the tokens behind a part are those that follow it."""
    part, ahead = key_size * TOKEN_BYTES, event.lookahead * TOKEN_BYTES
    width, run = event.block_size * TOKEN_BYTES, event.block_size // key_size
    folded = event.extra_keys or {}
    extra_keys: dict[int, bytes] = {}
    for position in range(len(event.hashes)):
        extra = folded.get(position, b"")
        own = extra[ahead:]
        if own and (position or event.parent is not None or not is_salt(own)):
            return extra_keys, position
        if ahead:
            text = event.tokens[position * width : (position + 1) * width] + extra[:ahead]
            extra_keys |= {position * run + number: text[(number + 1) * part : (number + 1) * part + ahead] for number in range(run)}
        if own:
            extra_keys[0] = extra_keys.get(0, b"") + own
    return extra_keys, len(event.hashes)
