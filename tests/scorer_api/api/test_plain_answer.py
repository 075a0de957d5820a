"""An answer that is put together from pieces is, byte for byte, the one that is encoded from objects."""

import gc
import random
import struct
import weakref
from typing import Any, cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.block_keys import chain_keys, root_key
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.groups import CacheShape, Group, Kind
from indexer.core.names import StreamKey, Trust
from indexer.http.negotiation import JSON, MSGPACK, encoder
from scorer_api.api import score
from scorer_api.api.resolve import ResolvedRequest
from scorer_api.api.schemas import ScoreRequest
from scorer_api.api.score import ScoreHandler
from scorer_api.index import holders
from scorer_api.index import plain_pods as plain_pods_module
from scorer_api.index.plain_pods import plain_pods
from scorer_api.index.prefix_index import PrefixIndexInPython
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from scorer_api.metrics import ScorerMetrics

SIZE, BLOCKS = 2, 20
TOKENS = struct.pack(f"<{SIZE * BLOCKS + 1}I", *range(SIZE * BLOCKS + 1))
KEYS = chain_keys(root_key("m", None, ""), TOKENS, SIZE)
PLAIN = CacheShape(SIZE, (Group(0, Kind.FULL, SIZE),))
WINDOWS = CacheShape(SIZE, (Group(0, Kind.FULL, SIZE), Group(1, Kind.WINDOW, SIZE, 4)))


class World:
    """A view that random pods come to, change in and leave."""

    def __init__(self, seed: int, *, is_plain: bool) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.view = View(Settings(hot_prefixes=10), clock=lambda: self.now_s)
        self.streams: dict[str, StreamKey] = {}
        self._is_plain = is_plain
        self._handler = ScoreHandler(self.view, cast(Any, None), ScorerMetrics(CollectorRegistry(), self.view), cast(Any, None))

    def change(self) -> None:
        """One of all that changes what is answered."""
        name = self.random.choice(["a", "b", 'ü"', "d", "e" * 40, *map(str, range(20))])
        stream = self.streams.get(name)
        what = self.random.random()
        if stream is None:
            stream = self.streams[name] = StreamKey("m", name, 0 if self._is_plain else self.random.choice([0, 1]))
            self.view.open(stream)
            self.hold(stream)
        elif what < 0.1:
            self.view.close(self.streams.pop(name))
        elif what < 0.2:
            self.view.set_trust(stream, self.random.choice(list(Trust)), until_s=self.now_s + self.random.choice([1, 100]))
        elif what < 0.3 and not self._is_plain:
            self.view.note_dropped(stream, self.random.choice([0, 0, 1]))
        elif what < 0.35 and not self._is_plain:
            self.view.drop(stream)
        elif what < 0.4 and not self._is_plain:
            self.view.open(StreamKey("m", name, 2))
        else:
            self.hold(stream)
        self.now_s += 0.1

    def hold(self, stream: StreamKey) -> None:
        change, left = Change(), self.random.choice([0, 1, 5, 5, 12, BLOCKS])
        change.cleared = True
        change.touched[Tier.GPU].update(dict.fromkeys([*KEYS[:left], 1], True))
        shape = PLAIN
        if not self._is_plain and self.random.random() < 0.2:
            change.touched[self.random.choice([Tier.CPU, Tier.DISK])].update({key: self.random.random() < 0.5 for key in KEYS[:8]})
        if not self._is_plain and self.random.random() < 0.1:
            shape = WINDOWS
        self.view.append(stream, shape, change)

    def answer(self, media_type: str, limit: int | None, blocks: int) -> bytes:
        """It counts one prompt."""
        request = ScoreRequest(model="m", limit=limit)
        prompt = Prompt("m", TOKENS[: 4 * (blocks * SIZE + 1)])
        before, _ = self.view.prompt_counts("m")
        content = self._handler.encoded_answer(ResolvedRequest(request, "token_ids", prompt), encoder(media_type))
        after, unmatched = self.view.prompt_counts("m")
        assert (after, unmatched == 0) == (before + 1, decode(content, media_type)["best"] is not None)
        return content


def decode(content: bytes, media_type: str) -> Any:
    return (msgspec.json if media_type == JSON else msgspec.msgpack).decode(content)


@pytest.mark.parametrize(("is_plain", "is_packed"), [(True, True), (True, False), (False, True)])
def test_answers_are_the_same_in_every_byte(monkeypatch: pytest.MonkeyPatch, is_plain: bool, is_packed: bool) -> None:
    """`is_packed`: the compiled core keeps the matches, where it is in use."""
    put_together = 0
    if not is_packed:
        monkeypatch.setattr(plain_pods_module, "core", None)
    for seed in range(20):
        world = World(seed, is_plain=is_plain)
        for turn in range(60):
            world.change()
            if world.streams:
                asked = [JSON, MSGPACK][turn % 2], world.random.choice([None, None, 1, 3, 30]), world.random.choice([BLOCKS, 10, 1, 0])
                put_together += plain_pods(world.view._models["m"]) is not None
                found = world.answer(*asked)
                with monkeypatch.context() as patch:
                    patch.setattr(score, "has_form", lambda _: False)
                    assert found == world.answer(*asked)
    assert put_together > (1_000 if is_plain else 20)


def test_an_index_that_no_pod_is_in_any_more_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody asks for scores after that."""
    monkeypatch.setattr(holders, "make_index", PrefixIndexInPython)
    view, stream, change = View(Settings()), StreamKey("m", "a", 0), Change()
    view.open(stream)
    change.touched[Tier.GPU].update(dict.fromkeys(KEYS, True))
    view.append(stream, PLAIN, change)
    assert view.score_plain(Prompt("m", TOKENS)) is not None
    (index,) = map(weakref.ref, view._models["m"].indexes.values())
    view.append(stream, CacheShape(4, (Group(0, Kind.FULL, 4),)), change)
    gc.collect()
    assert index() is None
