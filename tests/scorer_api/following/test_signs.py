"""Terms and signs of owners, by a clock of Redis that is set while they are looked at."""

import math

import pytest

from scorer_api.following.signs import Signs, Terms

LEASE_S = 3.0
HOUR_S = 3600.0


def term(clock_s: float, written_s: float) -> int:
    """What an owner writes at a time of the monotonic clock, where this is to be added to Redis's."""
    return int((written_s - clock_s + LEASE_S) * 1000)


def test_a_term_that_is_renewed_ends_when_it_says() -> None:
    terms = Terms(LEASE_S)
    for asked_s in (100.0, 101.0, 102.0):
        assert terms.note({"a": term(50, asked_s - 0.5)}, 50, asked_s) == {"a": pytest.approx(asked_s - 0.5 + LEASE_S)}


@pytest.mark.parametrize("jump_s", [-HOUR_S, -10.0, HOUR_S])
def test_a_term_that_is_not_renewed_ends_a_lease_after_it_was_seen(jump_s: float) -> None:
    """Redis's clock is set by `jump_s`: what is to be added to it changes by as much."""
    terms = Terms(LEASE_S)
    written = term(50, 99.5)
    terms.note({"a": written}, 50, 100.0)
    for asked_s in (101.0, 102.0, 110.0, 200.0):
        assert terms.note({"a": written}, 50 - jump_s, asked_s)["a"] <= 100 + LEASE_S


def test_a_term_too_far_ahead_counts_once_it_is_renewed() -> None:
    terms = Terms(LEASE_S)
    assert terms.note({"a": term(50, 99.0)}, 50 + HOUR_S, 100.0) == {"a": -math.inf}
    assert terms.note({"a": term(50, 99.0)}, 50 + HOUR_S, 101.0) == {"a": -math.inf}
    assert terms.note({"a": term(50, 101.5)}, 50 + HOUR_S, 102.0) == {"a": 102 + LEASE_S}


def test_a_longer_lease_of_an_owner_counts_as_one_of_ours() -> None:
    terms = Terms(LEASE_S)
    terms.note({"a": term(50, 100.0 + 30)}, 50, 100.0)
    assert terms.note({"a": term(50, 101.0 + 30)}, 50, 101.0) == {"a": 101 + LEASE_S}


def test_who_is_gone_and_comes_back_is_seen_anew() -> None:
    terms = Terms(LEASE_S)
    terms.note({"a": term(50, 100.0)}, 50, 100.0)
    assert terms.note({}, 50, 101.0) == {}
    assert terms.note({"a": term(50, 102.0)}, 50, 102.0) == {"a": 102 + LEASE_S}


def test_a_sign_is_as_old_as_it_says_at_the_first_look() -> None:
    signs = Signs()
    assert signs.note({"a": 40_000, "b": 60_000}, 50, 100.0) == {"a": 90, "b": 100}


@pytest.mark.parametrize("jump_s", [-HOUR_S, HOUR_S])
def test_a_sign_stays_as_old_as_it_is_where_the_clock_is_set(jump_s: float) -> None:
    signs = Signs()
    for asked_s, clock_s in ((100.0, 50.0), (101.0, 50 - jump_s), (500.0, 50 - jump_s)):
        assert signs.note({"a": 45_000}, clock_s, asked_s) == {"a": 95}


@pytest.mark.parametrize("jump_s", [-HOUR_S, HOUR_S])
def test_a_new_sign_was_given_since_the_last_look(jump_s: float) -> None:
    signs = Signs()
    signs.note({"a": 45_000}, 50, 100.0)
    given_s = signs.note({"a": 50_500}, 50 - jump_s, 101.0)["a"]
    assert 100 <= given_s <= 101
