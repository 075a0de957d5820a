import pytest

from indexer.core.names import StreamKey, Trust
from indexer.streams.readiness import REASONS_MAX, Readiness, failure_of, readiness


@pytest.mark.parametrize(
    ("trust", "error", "told"),
    [
        (Trust.LIVE, "an old error", None),
        (Trust.PARTIAL, None, None),
        (Trust.PARTIAL, "refused", "pod a rank 1 is partial: refused"),
        (Trust.STALE, None, "pod a rank 1 is stale"),
        (Trust.EXPIRED, "gone", "pod a rank 1 is expired: gone"),
    ],
)
def test_what_is_not_as_it_should_be_with_a_stream(trust: Trust, error: str | None, told: str | None) -> None:
    assert failure_of(StreamKey("m", "a", 1), trust, error) == told


def test_the_status_follows_from_the_reasons() -> None:
    assert readiness(is_ready=False, reasons=["x"]) == Readiness("starting", ["x"])
    assert readiness(is_ready=True, reasons=["x", "y", "x"]) == Readiness("degraded", ["x", "y"])
    assert readiness(is_ready=True, reasons=[]) == Readiness("ready", [])


def test_the_first_reasons_are_told_and_the_others_counted() -> None:
    many = Readiness("degraded", [str(number) for number in range(REASONS_MAX + 3)])
    assert many.shortened() == Readiness("degraded", [*map(str, range(REASONS_MAX)), "and 3 more"])
    few = Readiness("degraded", many.reasons[:REASONS_MAX])
    assert few.shortened() == few
