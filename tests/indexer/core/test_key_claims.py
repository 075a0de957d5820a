"""When two engine hashes make a key ambiguous, and until when."""

from indexer.core.key_claims import KeyClaimsInPython, make_key_claims


def test_a_key_is_ambiguous_from_the_second_hash_on() -> None:
    claims = make_key_claims()
    assert not claims.claim(1, 10)
    assert not claims.claim(1, 10)
    assert claims.ambiguous == set()
    assert claims.claim(2, 10)
    assert claims.ambiguous == {10}
    assert not claims.claim(3, 10), "it was ambiguous before"


def test_a_key_is_ambiguous_while_more_than_one_hash_claims_it() -> None:
    claims = make_key_claims()
    for engine_hash in (1, 2, 3):
        claims.claim(engine_hash, 10)
    assert not claims.release(2, 10)
    assert claims.ambiguous == {10}
    assert claims.release(1, 10)
    assert claims.ambiguous == set()
    assert not claims.claim(3, 10)
    assert claims.claim(1, 10)
    assert claims.release(3, 10)
    assert not claims.release(1, 10)
    assert not claims.claim(4, 10), "nobody claimed it any more"


def test_who_never_claimed_a_key_releases_nothing() -> None:
    claims = make_key_claims()
    claims.claim(1, 10)
    assert not claims.release(2, 10)
    assert not claims.release(1, 11)
    assert claims.claim(2, 10)


def test_many_hashes_claim_a_key_each_where_nobody_does() -> None:
    claims = KeyClaimsInPython()
    assert claims.are_free([10, 11])
    claims.claim_free([1, 2], [10, 11])
    assert not claims.are_free([9, 11])
    assert claims.claim(3, 11)
    assert claims.ambiguous == {11}
    assert claims.release(3, 11)
    assert not claims.release(1, 10)
    assert claims.are_free([10])
