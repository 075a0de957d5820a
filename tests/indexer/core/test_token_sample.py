"""The highest token id of a sample of events."""

from indexer.core.block_keys import pack_tokens
from indexer.core.token_sample import SAMPLED_EVENTS, SAMPLED_TOKENS_MIN, TokenSample


def test_the_highest_token_is_that_of_all_samples() -> None:
    sample = TokenSample()
    assert sample.highest is None
    sample.add(pack_tokens([3, 2**32 - 1, 5]))
    sample.add(pack_tokens([7]))
    assert sample.highest == 2**32 - 1


def test_every_event_is_a_sample_until_there_were_enough_tokens() -> None:
    sample = TokenSample()
    sample.add(pack_tokens([1] * (SAMPLED_TOKENS_MIN - 1)))
    assert sample.until_next == 1
    sample.add(pack_tokens([1]))
    assert sample.until_next == SAMPLED_EVENTS
