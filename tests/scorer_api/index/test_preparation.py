"""What is looked up in pieces beforehand gives the answer of one look-up at the end, whatever changes in between."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.groups import CacheShape, Group, Kind
from indexer.core.names import StreamKey
from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.prompt import RUN_BLOCKS, Prompt, Query
from scorer_api.index.view import View
from tests.scorer_api.index.contents import A1, CPU, GPU, A, B, C, holds, keys, new_view

BLOCKS = 3 * RUN_BLOCKS
LETTERS = "".join(chr(0x100 + number) for number in range(BLOCKS))
CHAIN = keys(LETTERS)
STREAMS = (A, A1, B, C)
PLAIN = CacheShape(2)
HYBRID = CacheShape(2, (Group(0, Kind.FULL, 2), Group(1, Kind.WINDOW, 2, 2 * RUN_BLOCKS)))
SHAPES = {A: PLAIN, A1: PLAIN, B: HYBRID, C: PLAIN}
EDGES = (0, 1, RUN_BLOCKS - 1, RUN_BLOCKS, RUN_BLOCKS + 1, 2 * RUN_BLOCKS, BLOCKS)

blocks = st.tuples(st.sampled_from(EDGES), st.sampled_from(EDGES)).map(lambda ends: CHAIN[min(ends) : max(ends)])
change = st.tuples(st.sampled_from(STREAMS), st.sampled_from(["hold", "hold", "lose", "drop", "close"]), blocks, st.sampled_from([GPU, GPU, CPU]))


def in_all_groups(made: Change) -> Change:
    """The second group, where there is one, gets the same blocks."""
    made.touched_in[1] = tuple(dict(touched) for touched in made.touched)
    return made


def carry_out(view: View, stream: StreamKey, what: str, held: list[int], tier: Tier) -> None:
    if stream.rank not in view._models["m"].pods.get(stream.pod, {}) if "m" in view._models else True:
        view.open(stream)
    match what:
        case "hold":
            view.append(stream, SHAPES[stream], in_all_groups(holds(*held, tier=tier)))
        case "lose":
            view.append(stream, SHAPES[stream], holds(gone=tuple(held), tier=tier))
        case "drop":
            view.drop(stream)
        case _:
            view.close(stream)


def prompt() -> Prompt:
    return Prompt("m", b"".join(ord(letter).to_bytes(4, "little") * 2 for letter in LETTERS) + b"\0\0\0\0")


def asked(view: View, query: Query) -> object:
    return view.score(query), view.score(query, ["a"]), view.score(query, ["b", "c"]), view.trace(query)


@given(st.lists(change, max_size=12))
def test_it_is_the_answer_of_one_look_up(changes: list[tuple[StreamKey, str, list[int], Tier]]) -> None:
    view = new_view(*STREAMS)
    for each in changes:
        carry_out(view, *each)
    if not view.has_model("m"):
        return
    prepared = replace(prompt(), prepared=view.keys_of(prompt()))
    assert all(step is None for step in view.prepare(prepared))
    assert prepared.prepared is not None
    assert set(prepared.prepared.walks) == set(view._models["m"].indexes)
    assert asked(view, prepared) == asked(view, prompt())


@given(st.lists(change, max_size=8), st.lists(st.tuples(st.sampled_from(["drop", "close"]), st.sampled_from(STREAMS)), min_size=1, max_size=4))
def test_what_is_dropped_after_it_was_looked_up_is_in_no_answer(
    changes: list[tuple[StreamKey, str, list[int], Tier]], gone: list[tuple[str, StreamKey]]
) -> None:
    """Numbers of holders are used again, for others: a walk that was made for the former ones does not count."""
    view = new_view(*STREAMS)
    for each in changes:
        carry_out(view, *each)
    if not view.has_model("m"):
        return
    prepared = replace(prompt(), prepared=view.keys_of(prompt()))
    steps: Iterator[None] = view.prepare(prepared)
    next(steps, None)
    for what, stream in gone:
        carry_out(view, stream, what, [], GPU)
        carry_out(view, stream, "hold", CHAIN[:1], GPU)
    list(steps)
    for what, stream in gone:
        carry_out(view, stream, what, [], GPU)
        carry_out(view, stream, "hold", CHAIN[:2], GPU)
    assert asked(view, prepared) == asked(view, prompt())


@given(st.lists(change, max_size=12), st.integers(0, BLOCKS), st.booleans())
def test_so_it_is_with_engine_hashes(changes: list[tuple[StreamKey, str, list[int], Tier]], known: int, drops: bool) -> None:
    view = View(Settings())
    mapping = dict(zip(range(BLOCKS), CHAIN[:known], strict=False))
    view.mapped_key = lambda stream: mapping.get
    for stream in STREAMS:
        view.open(stream)
    for each in changes:
        carry_out(view, *each)
    if not view.has_model("m"):
        return
    hashes, direct = EngineHashes("m", range(BLOCKS)), EngineHashes("m", range(BLOCKS))
    list(view.prepare(hashes))
    if drops:
        carry_out(view, A, "drop", [], GPU)
        carry_out(view, A, "hold", CHAIN[:3], GPU)
    assert asked(view, hashes) == asked(view, direct)


def test_a_model_that_is_not_known_needs_no_preparation() -> None:
    view = new_view(A)
    assert list(view.prepare(replace(prompt(), model="other", prepared=view.keys_of(prompt())))) == []
