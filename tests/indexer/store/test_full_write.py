"""How many fields of a stream go to Redis in one round, by how long rounds take."""

from indexer.store.full_write import QUICK_PART, ROUND_FIELDS_MAX, ROUND_FIELDS_MIN, Pace

TIMEOUT_S = 2.0
QUICK_S = QUICK_PART * TIMEOUT_S


def fields_after_timeouts(count: int) -> list[int]:
    """The fields of each round, every one of which has timed out."""
    pace, fields = Pace(TIMEOUT_S), []
    for _ in range(count):
        fields.append(pace.fields)
        pace.note_timeout(pace.fields)
    return fields


def test_each_timeout_halves_a_round_down_to_the_smallest() -> None:
    assert fields_after_timeouts(8) == [4000, 2000, 1000, 500, 250, 125, 125, 125]
    assert (ROUND_FIELDS_MAX, ROUND_FIELDS_MIN) == (4000, 125)


def test_a_round_that_was_not_full_counts_by_what_it_had() -> None:
    pace = Pace(TIMEOUT_S)
    pace.note_timeout(600)
    assert pace.fields == 300
    pace.note_timeout(4000)  # begun before the other one was over
    assert pace.fields == 150


def test_quick_rounds_and_writes_that_are_done_double_it_up_to_the_largest() -> None:
    pace = Pace(TIMEOUT_S)
    for _ in range(6):
        pace.note_timeout(pace.fields)
    pace.note_round(QUICK_S)
    assert pace.fields == 125, "it left no time for one of twice the fields"
    seen = []
    for _ in range(7):
        pace.note_round(QUICK_S / 2)
        seen.append(pace.fields)
    assert seen == [250, 500, 1000, 2000, 4000, 4000, 4000]
    pace.note_timeout(4000)
    pace.grow()
    assert pace.fields == 4000
