"""The cache of tokenized prompts."""

from scorer_api.tokens.cache import AGE_MAX_S, ENTRY_BYTES, TokenCache


def test_the_least_recently_used_go_first() -> None:
    cache = TokenCache(2, 10**6)
    cache.put(b"a", b"1", 0)
    cache.put(b"b", b"22", 0)
    assert cache.get(b"a", 0) == b"1"
    cache.put(b"c", b"333", 0)
    assert [cache.get(key, 0) for key in (b"a", b"b", b"c")] == [b"1", None, b"333"]
    assert cache.bytes == 1 + 3 + 2 * ENTRY_BYTES


def test_bytes_are_bounded_too_and_what_is_larger_is_not_kept() -> None:
    cache = TokenCache(100, 3 * (ENTRY_BYTES + 10))
    for number in range(5):
        cache.put(bytes([number]), bytes(10), 0)
    assert ([cache.get(bytes([number]), 0) is not None for number in range(5)], len(cache)) == ([False, False, True, True, True], 3)
    cache.put(b"large", bytes(4 * ENTRY_BYTES), 0)
    assert (cache.get(b"large", 0), len(cache)) == (None, 3)


def test_what_is_put_again_counts_once() -> None:
    cache = TokenCache(10, 10**6)
    cache.put(b"a", bytes(100), 0)
    cache.put(b"a", bytes(10), 0)
    assert (len(cache), cache.bytes) == (1, ENTRY_BYTES + 10)


def test_what_is_old_is_asked_for_again() -> None:
    cache = TokenCache(10, 10**6)
    cache.put(b"a", b"1", 5.0)
    assert cache.get(b"a", 5.0 + AGE_MAX_S) == b"1"
    assert cache.get(b"a", 5.1 + AGE_MAX_S) is None
    assert (len(cache), cache.bytes) == (0, 0)
