"""Local hashes → block keys, as they are learnt from events."""

from collections.abc import Sequence

from indexer.core.block_keys import pack_tokens
from indexer.core.events import Event
from indexer.core.stream_state import StreamState
from scorer_api.compat.hash_chains import ROOT, HashChains
from scorer_api.compat.local_hashes import local_hashes, seed_of
from tests import events

SIZE = 2


class Followed:
    """A stream and the chains that follow it. `held`: the keys that the index would hold; all, as long as it is None."""

    def __init__(self, spare_blocks: int = 100) -> None:
        self.state = StreamState("m", "")
        self.held: set[int] | None = None
        self.chains = HashChains(self._are_held, lambda: len(self.state.table.held), spare_blocks)

    def _are_held(self, block_size: int, keys: Sequence[int]) -> list[bool]:
        assert block_size == SIZE
        return [self.held is None or key in self.held for key in keys]

    def apply(self, *applied: Event) -> None:
        self.state.apply(list(applied), 0.0)
        self.chains.follow(applied, self.state)

    def key(self, engine_hash: int) -> int:
        key = self.state.table.key_of(engine_hash)
        assert key is not None
        return key


def hashes_of(content: str, lora_name: str | None = None, salt: str | None = None) -> list[int]:
    return local_hashes(events.tokens_of(content, block_size=SIZE), SIZE, seed_of(lora_name, salt))


def stored(hashes: list[int], content: str, parent: int | None = None, **more: object) -> Event:
    return events.stored(hashes, content, parent, block_size=SIZE, **more)  # type: ignore[arg-type]


def test_a_chain_is_found_from_its_first_block_on() -> None:
    followed = Followed()
    followed.apply(stored([1, 2], "AB"))
    followed.apply(stored([3], "C", 2))
    keys = [followed.key(engine_hash) for engine_hash in (1, 2, 3)]
    assert followed.chains.keys_of(hashes_of("ABC")) == keys
    assert followed.chains.keys_of(hashes_of("C"), keys[1]) == keys[2:]
    assert followed.chains.keys_of(hashes_of("ABX")) == keys[:2]
    assert followed.chains.keys_of(hashes_of("BC")) == []
    assert [followed.chains.local_hash(key) for key in keys] == hashes_of("ABC")


def test_an_adapter_and_a_salt_are_part_of_every_hash() -> None:
    followed = Followed()
    followed.apply(stored([1, 2], "AB"), stored([3, 4], "AB", lora_name="ad"))
    followed.apply(stored([5, 6], "AB", extra_keys={0: b"\x92\x90\xa4salt"}))
    followed.apply(stored([7], "C", 6))
    for hashes, engine_hashes in (
        (hashes_of("AB"), (1, 2)),
        (hashes_of("AB", "ad"), (3, 4)),
        (hashes_of("ABC", salt="salt"), (5, 6, 7)),
    ):
        assert followed.chains.keys_of(hashes) == [followed.key(engine_hash) for engine_hash in engine_hashes]


def test_an_image_is_in_no_chain() -> None:
    followed = Followed()
    followed.apply(stored([1, 2], "AB", extra_keys={1: b"\x92\x91\xa3img\xc0"}))
    followed.apply(stored([3, 4], "CD", extra_keys={0: b"\x92\x91\xa3img\xc0"}))
    assert followed.chains.keys_of(hashes_of("AB")) == followed.chains.keys_of(hashes_of("CD")) == []


def test_a_block_whose_parent_is_unknown_is_in_no_chain() -> None:
    followed = Followed()
    followed.apply(stored([2], "B", 1))
    assert len(followed.chains) == 0


def test_what_nobody_holds_is_dropped_once_there_is_much() -> None:
    followed = Followed(spare_blocks=4)
    for number in range(60):
        followed.held = set()
        followed.apply(stored([number], chr(65 + number)))
        followed.apply(events.removed([number]))
    assert len(followed.chains) <= 8


def test_what_is_held_stays_however_much_there_is() -> None:
    followed = Followed(spare_blocks=1)
    for number in range(40):
        followed.apply(stored([number], chr(65 + number)))
    assert followed.chains.keys_of(hashes_of("A"), ROOT) == [followed.key(0)]
    assert len(followed.chains) == 40
    assert pack_tokens([65, 65]) == events.tokens_of("A", block_size=SIZE)
