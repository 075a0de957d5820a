"""Local block hashes, compared with what `compute_block_hash_for_seq` of ai-dynamo-runtime 1.6.1 gave."""

import pytest

from indexer.core.block_keys import pack_tokens
from scorer_api.compat.local_hashes import local_hashes, seed_of

TOKENS = pack_tokens(list(range(1, 9)))


@pytest.mark.parametrize(
    ("lora_name", "cache_salt", "expected"),
    [
        (None, None, [14643705804678351452, 16777012769546811212]),
        ("a", None, [17680866786467819158, 10751596618610180438]),
        (None, "s", [5728354201622468629, 3103195633695993164]),
        ("a", "s", [8794082693489998562, 16470744417190583662]),
        ("", "", [14643705804678351452, 16777012769546811212]),
    ],
)
def test_the_hashes_are_dynamos(lora_name: str | None, cache_salt: str | None, expected: list[int]) -> None:
    assert local_hashes(TOKENS, 4, seed_of(lora_name, cache_salt)) == expected


def test_a_block_that_is_not_whole_has_none() -> None:
    assert len(local_hashes(TOKENS[:-4], 4, seed_of(None, None))) == 1
    assert local_hashes(b"", 4, seed_of(None, None)) == []
