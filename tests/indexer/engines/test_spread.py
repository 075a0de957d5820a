import asyncio

import pytest

from indexer.engines.spread import AT_ONCE, spread


@pytest.mark.parametrize(("count", "pauses"), [(0, 0), (1, 0), (AT_ONCE, 0), (AT_ONCE + 1, 1), (2 * AT_ONCE, 1), (5 * AT_ONCE + 1, 5)])
async def test_few_begin_together_and_all_within_the_time(count: int, pauses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def note(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", note)
    assert [item async for item in spread(range(count), 6.0)] == list(range(count))
    assert len(slept) == pauses
    assert sum(slept) == pytest.approx(6.0 if pauses else 0.0)
