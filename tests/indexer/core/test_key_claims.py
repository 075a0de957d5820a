"""When two engine hashes make a key ambiguous, and until when."""

from indexer.core.key_claims import KeyClaims


def test_a_key_is_ambiguous_from_the_second_hash_on() -> None:
    claims = KeyClaims()
    assert not claims.claim(1, 10)
    assert not claims.claim(1, 10)
    assert claims.ambiguous == set()
    assert claims.claim(2, 10)
    assert claims.ambiguous == {10}
    assert not claims.claim(3, 10), "it was ambiguous before"


def test_a_key_stays_ambiguous_until_all_that_claimed_it_are_gone() -> None:
    claims = KeyClaims()
    for engine_hash in (1, 2):
        claims.claim(engine_hash, 10)
    assert not claims.release(1, 10)
    assert claims.ambiguous == {10}, "nobody knows which of the two images the block that is left has"
    assert not claims.claim(1, 10)
    assert not claims.release(2, 10)
    assert claims.release(1, 10)
    assert claims.ambiguous == set()
    assert not claims.claim(3, 10)


def test_who_never_claimed_a_key_releases_nothing() -> None:
    claims = KeyClaims()
    claims.claim(1, 10)
    assert not claims.release(2, 10)
    assert not claims.release(1, 11)
    assert claims.claim(2, 10)
