"""The tree of prompts, against a list of them; and what it costs, in blocks remembered and keys looked at."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from scorer_api.routing.prompt_tree import Node, PromptTree

Letters = list[int]


def chained(letters: Sequence[int]) -> list[int]:
    """Keys that depend on all letters before, as block keys do."""
    keys, key = [], 1
    for letter in letters:
        key = (key * 31 + letter + 1) % 2**61
        keys.append(key)
    return keys


def expected(prompts: list[tuple[str, Letters]], asked: Letters) -> dict[str, int]:
    """Holder → longest common beginning, from the letters themselves."""
    found: dict[str, int] = {}
    for holder, letters in prompts:
        common = 0
        while common < min(len(letters), len(asked)) and letters[common] == asked[common]:
            common += 1
        if common:
            found[holder] = max(found.get(holder, 0), common)
    return found


# Few letters, so that prompts share beginnings.
prompts = st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 1), min_size=1, max_size=9)), max_size=12)


@given(prompts, st.lists(st.integers(0, 1), max_size=10), st.data())
def test_it_finds_what_comparing_with_every_prompt_finds(sent: list[tuple[str, Letters]], asked: Letters, data: st.DataObject) -> None:
    tree: PromptTree[str] = PromptTree()
    ends: list[Node[str]] = [tree.add(holder, chained(letters)) for holder, letters in sent]
    left = list(sent)
    while True:
        assert tree.match(chained(asked)) == expected(left, asked)
        assert [list(tree.keys_of(end)) for end in ends] == [chained(letters) for _, letters in left]
        beginnings = {tuple(letters[: length + 1]) for _, letters in left for length in range(len(letters))}
        assert tree.blocks == len(beginnings)
        if not left:
            return
        gone = data.draw(st.integers(0, len(left) - 1))
        tree.remove(left.pop(gone)[0], ends.pop(gone))


def test_prompts_that_share_blocks_share_memory() -> None:
    tree: PromptTree[str] = PromptTree()
    system = list(range(500))
    for number in range(100):
        tree.add("a", chained([*system, 1000 + number]))
    assert tree.blocks == 600


class CountedKeys(list[int]):
    """Counts how often one of them is looked at."""

    looked_at = 0

    def __getitem__(self, item: object) -> object:  # type: ignore[override]
        self.looked_at += 1 if isinstance(item, int) else 0
        return super().__getitem__(item)  # type: ignore[index]


def test_a_match_costs_by_the_branches_and_not_by_the_blocks() -> None:
    tree: PromptTree[str] = PromptTree()
    tree.add("a", chained([0] * 10_000))
    tree.add("a", chained([0] * 5_000 + [1] * 5_000))
    same, branching = CountedKeys(chained([0] * 10_000)), CountedKeys(chained([0] * 7_777 + [2] * 2_223))
    assert tree.match(same) == {"a": 10_000}
    assert same.looked_at <= 4
    assert tree.match(branching) == {"a": 7_777}
    assert branching.looked_at <= 20
