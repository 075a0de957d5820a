"""Remembered tokens, and work that is done once for all that want it."""

import asyncio

import pytest

from scorer_api.tokens.cache import AGE_MAX_S, ENTRY_BYTES, TokenCache
from scorer_api.tokens.sharing import Sharing


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


async def _shared() -> None:
    sharing: Sharing[int] = Sharing()
    began, may_end = 0, asyncio.Event()

    async def work() -> int:
        nonlocal began
        began += 1
        await may_end.wait()
        return 7

    first, second, third = (asyncio.create_task(sharing.share(b"k", work)) for _ in range(3))
    await asyncio.sleep(0.01)
    assert began == 1
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    may_end.set()
    assert (await second, await third, began) == (7, 7, 1)
    assert not sharing.has(b"k")


def test_one_that_stops_waiting_stops_nobody_else() -> None:
    asyncio.run(_shared())


async def _left() -> None:
    sharing: Sharing[int] = Sharing()
    ended = asyncio.Event()

    async def work() -> int:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return 1

    waiting = asyncio.create_task(sharing.share(b"k", work))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await ended.wait()
    assert not sharing.has(b"k")


def test_work_that_nobody_waits_for_ends() -> None:
    asyncio.run(_left())


async def _failing() -> None:
    sharing: Sharing[int] = Sharing()

    async def work() -> int:
        await asyncio.sleep(0)
        raise ValueError("no")

    found = await asyncio.gather(*(sharing.share(b"k", work) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in found] == [ValueError] * 3
    assert not sharing.has(b"k")


def test_all_that_wait_are_told_of_a_failure() -> None:
    asyncio.run(_failing())


async def _closed() -> None:
    sharing: Sharing[int] = Sharing()

    async def work() -> int:
        await asyncio.sleep(3600)
        return 1

    waiting = asyncio.create_task(sharing.share(b"k", work))
    await asyncio.sleep(0.01)
    await sharing.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_closing_ends_all_work() -> None:
    asyncio.run(_closed())
