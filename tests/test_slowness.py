"""Time limits grow with what else wants to run."""

import time
from pathlib import Path

import pytest

from tests import slowness
from tests.slowness import Budget
from tests.waiting import wait_until


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /proc/loadavg of a machine with two CPUs."""
    path = tmp_path / "loadavg"
    monkeypatch.setattr(slowness, "_LOAD", path)
    monkeypatch.setattr(slowness, "_CPUS", 2)
    return path


@pytest.mark.parametrize(("text", "expected"), [("0.10 0.20 0.30 1/200 4000", 1), ("9 9 9 10/200 4000", 5), ("9 9 9", 1), ("9 9 9 many/200 1", 1)])
def test_slowness_is_what_wants_to_run_for_each_cpu(load: Path, text: str, expected: float) -> None:
    load.write_text(text)
    assert slowness.slowness() == expected


def test_a_machine_that_does_not_tell_is_taken_for_quiet(load: Path) -> None:
    assert not load.exists()
    assert slowness.slowness() == 1


def test_a_budget_lasts_longer_on_a_busy_machine(load: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    load.write_text("9 9 9 8/200 1")
    budget = Budget(10)
    now_s += 36
    assert budget.is_left()
    load.write_text("9 9 9 1/200 1")
    now_s += 2  # 36 / 4 + 2
    assert not budget.is_left()


def test_waiting_ends_and_says_what_did_not_come(load: Path) -> None:
    load.write_text("0 0 0 1/200 1")
    with pytest.raises(AssertionError, match=r"^the moon did not come true in 0\.05 s; it is 0"):
        wait_until(lambda: 0, 0.05, "the moon")
