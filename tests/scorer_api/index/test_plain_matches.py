"""How far pods match, by the compiled core from a prompt's tokens, and as the walk in Python says it of the same blocks."""

import random

import msgspec
import pytest

from indexer.compiled import core
from indexer.core.block_keys import chain_keys_in_python
from indexer.core.change import Change
from scorer_api.index.prefix_index import PrefixIndexInPython

pytestmark = pytest.mark.skipif(core is None, reason="the compiled core is not in use")
ROOT = 7


def held(index: object, holder: int, keys: list[int]) -> None:
    index.apply(holder, Change(), [dict.fromkeys(keys, True)])  # type: ignore[attr-defined]  # either index


def groups_of(index: PrefixIndexInPython, holders: list[int], keys: list[int]) -> list[tuple[int, list[int]]]:
    """From the steps of a walk: positions at which holders are gone, the last ones first."""
    alive = sum(1 << holder for holder in holders)
    found = []
    for position, masks in index.walk(alive, [keys]):
        gone = alive & ~masks[0]
        if gone:
            found.append((position, [number for number, holder in enumerate(holders) if gone >> holder & 1]))
        alive &= masks[0]
    return found[::-1]


@pytest.mark.parametrize("pods", [0, 1, 3, 64, 65, 130])
def test_matches_are_those_of_a_walk(pods: int) -> None:
    assert core is not None
    rng = random.Random(pods)
    for size, lookahead in [(1, 0), (4, 0), (16, 0), (16, 1), (300, 2)]:
        index, twin = core.PrefixIndex(), PrefixIndexInPython()
        spare = [(index.add_holder(), twin.add_holder()) for _ in range(pods + 5)]
        holders = [one for one, _ in spare[:pods]]
        rng.shuffle(holders)
        blocks = rng.choice([1, 15, 16, 17, 40])
        tokens = rng.randbytes((blocks * size + max(1, lookahead)) * 4)
        keys = chain_keys_in_python(ROOT, tokens, size, None, 0, blocks, lookahead)
        for holder, _ in spare:
            few = keys[: rng.choice([0, 1, blocks // 2, blocks, blocks])]
            more = rng.sample(keys, min(3, blocks))
            held(index, holder, few + more)
            held(twin, holder, few + more)
        packed = core.PlainHolders(index, holders)
        # The sets grow wider after the holders were noted.
        for _ in range(70):
            index.add_holder()
        for usable in (blocks, blocks // 2, 0):
            found = packed.match(ROOT, tokens, size, usable, lookahead)
            groups = groups_of(twin, holders, keys[:usable])
            assert found.groups() == groups
            assert found.lengths() == [matched for matched, _ in groups]
            assert found.most == (groups[0][0] if groups else 0)
            if groups:
                assert found.first == groups[0][1][0]


def test_numbers_of_every_size_are_encoded_as_msgspec_does() -> None:
    assert core is not None
    index = core.PrefixIndex()
    packed = core.PlainHolders(index, [index.add_holder()])
    matches = packed.match(ROOT, b"", 1, 0)
    for usable in [0, 1, 2**7 - 1, 2**7, 2**8 - 1, 2**8, 2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**64 - 1]:
        for is_json, encode in ((True, msgspec.json.encode), (False, msgspec.msgpack.encode)):
            figures = encode([0.5])
            shown = matches.encoded([b",name"], [((b"",), (b"<", b">"))], b"\x03", figures, 1, 1, usable, 1, 1, is_json)
            assert shown == b"name<" + encode(usable) + b">"


def test_what_is_wrong_is_refused() -> None:
    assert core is not None
    index = core.PrefixIndex()
    holder = index.add_holder()
    for holders in ([holder, holder], [-1], [64], [2**40]):
        with pytest.raises((ValueError, OverflowError)):
            core.PlainHolders(index, holders)
    packed = core.PlainHolders(index, [holder])
    for size, blocks, lookahead in [(0, 0, 0), (-1, 1, 0), (2**60, 1, 0), (2, 3, 0), (2, -1, 0), (2, 1, -1), (2, 1, 2**60)]:
        with pytest.raises(ValueError, match="blocks"):
            packed.match(ROOT, bytes(16), size, blocks, lookahead)
    matches = packed.match(ROOT, bytes(16), 2, 2)
    template = ((b"a", b"b"), (b"a", b"b"))
    good = ([b"name"], [template], b"\x00", b"[0.5]", 1, 1, 1, 1, 0, True)
    assert matches.encoded(*good) == b"namea0.5b"
    wrong: list[tuple[int, object]] = [
        (0, []),
        (0, ["name"]),
        (1, []),
        (1, [None]),
        (1, [(template[0],)]),
        (1, [(None, None)]),
        (1, [(("a", "b"),) * 2]),
    ]
    for position, value in [*wrong, (1, [((), ())]), (2, b""), (3, b"["), (4, 9)]:
        with pytest.raises((ValueError, TypeError)):
            matches.encoded(*good[:position], value, *good[position + 1 :])  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="scores"):
        matches.encoded(*good[:4], -1, *good[5:])
    with pytest.raises(ValueError, match="scores"):
        matches.encoded(*good[:3], bytes(9), 1, *good[5:9], False)
    with pytest.raises(IndexError):
        core.PlainHolders(index, []).match(ROOT, b"", 1, 0).first  # noqa: B018
