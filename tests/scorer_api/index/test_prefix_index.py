"""Who holds which blocks, and how far a prompt's blocks are followed. Block keys are small numbers here."""

from collections.abc import Callable, Iterator

import pytest

from indexer.core.change import Change
from indexer.core.events import Tier
from scorer_api.index.prefix_index import PrefixIndex, PrefixIndexInPython, make_index

GPU, CPU, DISK, OTHER, REMOTE = Tier
MAKERS: dict[str, Callable[[], PrefixIndex]] = {"in Python": PrefixIndexInPython, "in use": make_index}
make = PrefixIndexInPython


@pytest.fixture(autouse=True, params=MAKERS)
def _each_index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is about the Python and about what is in use, which is compiled where there is a compiler."""
    monkeypatch.setitem(globals(), "make", MAKERS[request.param])


def change(*held: int, tier: Tier = GPU, gone: tuple[int, ...] = (), cleared: bool = False, reload: bool = False) -> Change:
    made = Change()
    made.cleared, made.reload = cleared, reload
    made.touched[tier].update(dict.fromkeys(held, True) | dict.fromkeys(gone, False))
    return made


def apply(index: PrefixIndex, holder: int, made: Change) -> None:
    """A change of a stream with one KV-cache group."""
    index.apply(holder, made, made.touched)


def index_of(*changes: Change) -> PrefixIndex:
    """One holder per change: 0, 1, and so on."""
    index = make()
    for made in changes:
        apply(index, index.add_holder(), made)
    return index


def test_a_walk_records_where_the_mask_changes() -> None:
    index = index_of(change(1, 2, 3), change(1, 2), change(2, 3))
    assert index.walk(0b111, [[1, 2, 3, 4]]) == [(0, (0b011, 0, 0, 0)), (2, (0b001, 0, 0, 0)), (3, (0, 0, 0, 0))]


def test_a_walk_of_all_blocks_ends_behind_the_last() -> None:
    assert index_of(change(1, 2, 3)).walk(1, [[1, 2], [3]]) == [(0, (1, 0, 0, 0)), (3, (0, 0, 0, 0))]


def test_a_walk_follows_those_only_that_it_is_asked_for() -> None:
    assert index_of(change(1, 2), change(1)).walk(0b10, [[1, 2]]) == [(0, (0b10, 0, 0, 0)), (1, (0, 0, 0, 0))]


def test_a_walk_of_nothing_ends_at_once() -> None:
    assert index_of(change(1)).walk(1, []) == [(0, (0, 0, 0, 0))]
    assert make().walk(0, [[1]]) == [(0, (0, 0, 0, 0))]


def test_a_match_goes_on_through_the_holders_own_tiers() -> None:
    index = index_of(change(1, 2), change(1))
    apply(index, 1, change(2, tier=CPU))
    apply(index, 1, change(3, tier=DISK))
    apply(index, 1, change(4, tier=OTHER))
    assert index.walk(0b11, [[1, 2, 3, 4, 5]]) == [
        (0, (0b11, 0, 0, 0)),
        (1, (0b01, 0b10, 0, 0)),
        (2, (0, 0, 0b10, 0)),
        (3, (0, 0, 0, 0b10)),
        (4, (0, 0, 0, 0)),
    ]


def test_what_lies_remote_ends_the_match() -> None:
    index = index_of(change(1, 3))
    apply(index, 0, change(2, tier=REMOTE))
    assert index.walk(1, [[1, 2, 3]])[-1][0] == 1
    apply(index, 0, change(9, tier=CPU))
    assert index.walk(1, [[1, 2, 3]])[-1][0] == 1


def test_a_holder_that_missed_a_block_does_not_come_back() -> None:
    assert index_of(change(1, 2, 3), change(1, 3)).walk(0b11, [[1, 2, 3]]) == [(0, (0b11, 0, 0, 0)), (1, (0b01, 0, 0, 0)), (3, (0, 0, 0, 0))]
    index = index_of(change(1, 2, 3), change(1, 3))
    apply(index, 0, change(9, tier=CPU))
    assert index.walk(0b11, [[1, 2, 3]]) == [(0, (0b11, 0, 0, 0)), (1, (0b01, 0, 0, 0)), (3, (0, 0, 0, 0))]


def test_a_cold_prompt_takes_one_run_only() -> None:
    taken = []

    def runs() -> Iterator[list[int]]:
        for number in range(10):
            taken.append(number)
            yield [10 * number, 10 * number + 1]

    index = index_of(change(1, 2))
    index.walk(1, runs())
    assert taken == [0]
    apply(index, 0, change(0, 1, 10, tier=CPU))
    taken.clear()
    index.walk(1, runs())
    assert taken == [0, 1]


def test_a_middle_block_that_goes_and_comes_back() -> None:
    index = index_of(change(1, 2, 3))
    apply(index, 0, change(gone=(2,)))
    assert index.walk(1, [[1, 2, 3]])[-1][0] == 1
    apply(index, 0, change(2))
    assert index.walk(1, [[1, 2, 3]])[-1][0] == 3


def test_a_change_twice_is_a_change_once() -> None:
    index = index_of(change(1, 2, 3))
    for _ in range(2):
        apply(index, 0, change(4, gone=(2, 9)))
    assert (index.holders, index.blocks) == (3, 3)
    assert index.walk(1, [[1, 2]])[-1][0] == 1


def test_a_clear_empties_one_holders_gpu_before_what_else_it_says() -> None:
    index = index_of(change(1, 2), change(1, 2))
    apply(index, 0, change(2, tier=CPU))
    apply(index, 0, change(1, cleared=True))
    assert index.walk(0b11, [[1, 2]]) == [(0, (0b11, 0, 0, 0)), (1, (0b10, 0b01, 0, 0)), (2, (0, 0, 0, 0))]
    assert index.holders == 4


def test_a_reload_empties_all_of_one_holders_tiers_before_what_else_it_says() -> None:
    index = index_of(change(1, 2), change(1, 2))
    apply(index, 0, change(2, tier=CPU))
    apply(index, 0, change(3, reload=True))
    assert index.walk(0b01, [[3, 2]])[-1][0] == 1
    assert index.walk(0b10, [[1, 2]])[-1][0] == 2
    assert index.holders == 3


def test_a_key_that_nobody_holds_costs_nothing() -> None:
    index = index_of(change(1, 2), change(2, 3))
    assert (index.blocks, index.holders) == (3, 4)
    apply(index, 0, change(gone=(1, 2)))
    assert (index.blocks, index.holders) == (2, 2)
    apply(index, 1, change(cleared=True))
    assert (index.blocks, index.holders) == (0, 0)


def test_a_number_used_again_has_no_ghosts() -> None:
    index = index_of(change(1, 2), change(1))
    apply(index, 0, change(3, tier=REMOTE))
    index.remove_holder(0)
    assert (index.blocks, index.holders, index.is_empty) == (1, 1, False)
    again = index.add_holder()
    assert again == 0
    assert index.walk(0b11, [[1, 2]]) == [(0, (0b10, 0, 0, 0)), (1, (0, 0, 0, 0))]


def test_numbers_are_given_to_one_holder_at_a_time() -> None:
    index = make()
    numbers = [index.add_holder() for _ in range(4)]
    index.remove_holder(numbers[1])
    index.remove_holder(numbers[2])
    numbers[1:3] = [index.add_holder(), index.add_holder()]
    assert sorted([*numbers, index.add_holder()]) == [0, 1, 2, 3, 4]


def test_more_holders_than_a_machine_word_has_bits() -> None:
    index = index_of(*(change(1) for _ in range(200)))
    assert index.walk(1 << 199, [[1]]) == [(0, (1 << 199, 0, 0, 0)), (1, (0, 0, 0, 0))]


def test_an_index_without_holders_is_empty() -> None:
    index = make()
    assert index.is_empty
    index.add_holder()
    assert not index.is_empty
    index.remove_holder(0)
    assert index.is_empty


def test_a_holder_applies_what_is_its_own_of_a_change() -> None:
    index = index_of(change(1, 2), change(1, 2))
    made = change(3)
    made.touched_of(1)[GPU].update({4: True, 1: False})
    made.cleared = True
    index.apply(0, made, made.touched)
    index.apply(1, made, made.touched_in[1])
    assert (set(index.held(0, GPU)), set(index.held(1, GPU))) == ({3}, {4})


def test_spans_say_who_has_blocks_whatever_lies_before_them() -> None:
    index = index_of(change(1, 2, 4), change(2, 3, 4))
    assert index.spans([1, 2, 3, 4, 5]) == [(0, 1, 0b01), (1, 2, 0b11), (2, 3, 0b10), (3, 4, 0b11), (4, 5, 0)]
    assert index.spans([]) == []


def test_spans_join_the_holders_own_tiers() -> None:
    index = index_of(change(1), change(1, 2, 3))
    apply(index, 0, change(2, tier=CPU))
    apply(index, 0, change(3, tier=REMOTE))
    assert index.spans([1, 2, 3]) == [(0, 2, 0b11), (2, 3, 0b10)]
