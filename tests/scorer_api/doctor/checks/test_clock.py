"""Clocks that differ."""

from scorer_api.doctor.checks.clock import SKEW_MAX_S, Clock, check_clocks


def found(*clocks: Clock) -> list[tuple[str, str, str]]:
    return [(each.code, each.subject, each.detail) for each in check_clocks(list(clocks))]


def test_small_differences_are_no_finding() -> None:
    assert found() == []
    assert found(Clock("pod a", SKEW_MAX_S), Clock("pod b", -SKEW_MAX_S)) == []


def test_a_clock_that_is_off_is_named_once_with_its_worst_reading() -> None:
    readings = (Clock("pod a", 20.0), Clock("pod a", -60.0), Clock("pod b", 0.0))
    assert found(*readings) == [("clock_off", "pod a", "its clock is 60 s behind ours")]


def test_where_all_others_agree_ours_is_off() -> None:
    assert found(Clock("pod a", 60.0), Clock("pod b", 61.0)) == [("clock_off", "here", "the clocks of 2 others are all 60 s ahead of ours")]


def test_one_other_alone_is_off_itself() -> None:
    assert found(Clock("pod a", 60.0)) == [("clock_off", "pod a", "its clock is 60 s ahead of ours")]
