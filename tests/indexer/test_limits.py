"""Limits: groups of values that have one flat table of names."""

import pytest

from indexer.limits import Limits, RecoveryLimits


def test_nothing_given_is_the_defaults() -> None:
    assert Limits.of() == Limits()


def test_single_entries_are_set_by_their_names() -> None:
    limits = Limits.of(silence_s=0.5, copies_max=3)
    assert limits.recovery == RecoveryLimits(silence_s=0.5)
    assert limits.state.copies_max == 3
    assert limits.wire == Limits().wire


def test_entries_are_what_makes_the_same_limits() -> None:
    limits = Limits.of(route_seed=7, parked_max=1)
    assert limits.entries()["route_seed"] == 7
    assert Limits.of(**limits.entries()) == limits


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        Limits.of(silence_s=1.0, colour="red")
