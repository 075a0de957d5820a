"""Contents of streams, and prompts that ask for them, for tests of the view.

A block's content is a letter, its tokens are that letter as often as the block size says.
"""

import struct

from xxhash import xxh3_64_intdigest

from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.names import StreamKey
from scorer_api.index.lookup import PodScore, matched_by_rank
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View

GPU, CPU, DISK, OTHER, REMOTE = Tier
# msgpack of [1, "", "m", nil].
ROOT = xxh3_64_intdigest(b"\x94\x01\xa0\xa1m\xc0")


def tokens_of(letters: str, block_size: int = 2) -> bytes:
    return b"".join(struct.pack("<I", ord(letter)) * block_size for letter in letters)


def keys(letters: str, root: int = ROOT, block_size: int = 2) -> list[int]:
    """The keys of all blocks of a prompt."""
    chain = [root]
    for letter in letters:
        chain.append(xxh3_64_intdigest(tokens_of(letter, block_size), chain[-1]))
    return chain[1:]


def holds(*held: int, tier: Tier = GPU, gone: tuple[int, ...] = ()) -> Change:
    made = Change()
    made.touched[tier].update(dict.fromkeys(held, True) | dict.fromkeys(gone, False))
    return made


def new_view(*streams: StreamKey, hot_prefixes: int = 0) -> View:
    view = View(Settings(hot_prefixes=hot_prefixes))
    for stream in streams:
        view.open(stream)
    return view


def asked(letters: str, more: int = 1, block_size: int = 2) -> Prompt:
    """A prompt of these blocks and `more` tokens behind them."""
    return Prompt("m", tokens_of(letters, block_size) + b"\0\0\0\0" * more)


def matched(scores: list[PodScore]) -> dict[str, dict[str, int]]:
    return {score.pod: matched_by_rank(score.ranks) for score in scores}


A, A1, B, C = StreamKey("m", "a", 0), StreamKey("m", "a", 1), StreamKey("m", "b", 0), StreamKey("m", "c", 0)
