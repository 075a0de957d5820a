"""Messages that wait are applied together: what a stream makes of them is what it makes of the same ones by themselves."""

import asyncio
import math
import random
import struct
import time
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from indexer.compiled import core
from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.groups import CacheShape
from indexer.core.names import StreamKey
from indexer.core.orphans import Parked
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
from indexer.metrics import IndexerMetrics
from indexer.receiving.room import Room
from indexer.streams.progress import TURN_S
from indexer.streams.stream import Stream
from scorer_api.index.view import View

pack = msgspec.msgpack.encode
KEY = StreamKey("m", "pod", 0)


def shown(records: dict[int, Any]) -> dict[int, Any]:
    """As values, without the times of blocks that wait."""
    return {
        number: [getattr(record, name) for name in Parked.__slots__ if name != "since_s"] if isinstance(record, Parked) else str(record)
        for number, record in records.items()
    }


class Followed:
    """A stream that was told of a connection, with the index that it fills."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.view = View(Settings())
        self.view.open(KEY)
        kinds: Any = {"replay_endpoint": None, "counting": "copies", "offload_block_size": None, "turn": asyncio.Lock()}
        self.stream = Stream(KEY, room=Room(10**9), settings=Settings(), store=self.view, metrics=IndexerMetrics(self.registry), **kinds)
        self.stream.inbox.begin()
        self.stream._take_up(1)
        self.calls = 0

    def apply_alone(self, messages: list[list[bytes]]) -> None:
        for message in messages:
            self.stream._progress.go_on(math.inf)
            assert self.stream._apply_frames(message)
        self._finish()

    def apply_waiting(self, messages: list[list[bytes]]) -> None:
        inbox = self.stream.inbox
        inbox.put_all(messages)
        while inbox:
            self.calls += 1
            assert not self.stream._progress.apply_waiting(self.stream._apply_frames, math.inf)
        self._finish()

    def _finish(self) -> None:
        self.stream._progress.go_on(math.inf)
        self.stream._applier.count_applied()

    def found(self) -> dict[str, Any]:
        """All that can be seen of it."""
        stream, state = self.stream, self.stream.state
        snapshot, position = Snapshot(state), stream.position
        status = msgspec.to_builtins(stream.status())
        del status["last_batch_age_s"]
        series = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if "age_seconds_sum" not in sample.name and "timestamp" not in sample.name and "bucket" not in sample.name
        }
        records = {place: shown(snapshot.records(place, snapshot.hashes(place))) for place in snapshot.places()}
        held = {tier: state.held(tier) for tier in Tier}
        indexed = {key for key in held[Tier.GPU] if self.view.held(KEY, (key,))}
        return {"status": status, "position": position, "series": series, "records": records, "held": held, "indexed": indexed}


def plain(rng: random.Random, known: list[int], time_s: float) -> bytes:
    """A batch of one to three events with one to three blocks each, mostly behind others."""
    events: list[Any] = []
    for _ in range(rng.randint(1, 3)):
        hashes = [rng.getrandbits(64) for _ in range(rng.randint(1, 3))]
        if known and rng.random() < 0.3:
            events.append({"type": "BlockRemoved", "block_hashes": [rng.choice(known)], "medium": "GPU"})
            continue
        parent = rng.choice(known) if known and rng.random() < 0.6 else None if rng.random() < 0.9 else rng.getrandbits(64)
        tokens = [rng.randrange(3) for _ in range(2 * len(hashes))]
        stored = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "token_ids": tokens, "block_size": 2}
        extra_keys = [rng.choice([None, None, ["image"], [["image", 7]]]) for _ in hashes]
        events.append(stored | {"extra_keys": extra_keys} if rng.random() < 0.9 else stored)
        known += hashes
    return pack([time_s, events, 0])


def messages(seed: int) -> list[list[bytes]]:
    """Of one engine: mostly plain ones, one after the other."""
    rng, known, now_s = random.Random(seed), list[int](), time.time()
    found: list[list[bytes]] = []
    number = 0
    for _ in range(rng.choice([3, 60, 300])):
        payload, luck = plain(rng, known, rng.choice([now_s, now_s - 3, now_s + 5, math.nan, 0.0])), rng.random()
        if luck < 0.01:
            payload = pack([now_s, [{"type": "AllBlocksCleared"}], 0])
        elif luck < 0.02:
            payload = rng.choice([b"", b"\xc1", payload[:-1], payload + b"\0", pack([now_s, [], 0]), pack([now_s, [], None])])
        elif luck < 0.03:
            odd = {"type": "BlockStored", "block_hashes": [7], "parent_block_hash": None, "token_ids": [1, 2], "block_size": 2, "lora_name": "a"}
            payload = pack([now_s, [odd], 0])
        elif luck < 0.04:
            payload = pack([now_s, [{"type": "BlockStored", "block_hashes": [8], "token_ids": [1], "block_size": 1}], 0])
        elif luck < 0.05:
            payload = pack([now_s, msgspec.msgpack.decode(payload)[1], rng.choice([None, 1, 70_000])])
        frames = [b"topic", struct.pack(">Q", number), payload]
        number += 1
        if luck > 0.995:
            number += rng.choice([1, -2, -1, 5]) if number > 2 else 0
        elif luck > 0.99:
            frames = rng.choice([frames[:2], [*frames, b""], [b"", b"\xff" * 8, payload], [b"", b"short", payload]])
        elif luck > 0.988:
            number = 0
        found.append(frames)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_what_waits_together_becomes_what_comes_alone(seed: int) -> None:
    alone, together = Followed(), Followed()
    found = messages(seed)
    rng, start = random.Random(-seed), 0
    while start < len(found):
        count = rng.choice([1, 2, 50, 1_000])
        some = found[start : start + count]
        alone.apply_alone(some)
        together.apply_waiting(some)
        assert together.found() == alone.found()
        start += count


@pytest.mark.skipif(core is None, reason="the compiled core packs them")
def test_plain_messages_that_wait_are_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    followed, rng, known = Followed(), random.Random("one change"), list[int]()
    found = [[b"", struct.pack(">Q", number), plain(rng, known, time.time())] for number in range(101)]
    followed.apply_waiting(found[:1])
    changes: list[int | None] = []
    append = followed.view.append

    def note(stream: StreamKey, shape: CacheShape | None, change: Change, position: StreamPosition | None = None) -> None:
        changes.append(change.sequence)
        append(stream, shape, change, position)

    monkeypatch.setattr(followed.view, "append", note)
    followed.apply_waiting(found[1:9])
    followed.apply_waiting(found[9:])
    assert changes == [8, 100]
    assert followed.registry.get_sample_value("kv_indexer_batches_total") == 101
    assert followed.registry.get_sample_value("kv_indexer_event_age_seconds_count") == 101


@pytest.mark.skipif(core is None, reason="the compiled core packs them")
def test_a_large_message_is_no_part_of_what_is_applied_together() -> None:
    """It takes steps by itself."""
    followed = Followed()

    def sent(number: int, blocks: int) -> list[bytes]:
        hashes = list(range(number << 32, (number << 32) + blocks))
        event = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": None, "token_ids": [1] * blocks, "block_size": 1}
        return [b"", struct.pack(">Q", number), pack([time.time(), [event], 0])]

    followed.apply_waiting([sent(0, 1)])
    inbox, progress = followed.stream.inbox, followed.stream._progress
    inbox.put_all([sent(1, 1), sent(2, 1), sent(3, 40_000), sent(4, 1)])
    progress._takes_max = 4
    assert not progress.apply_waiting(followed.stream._apply_frames, time.monotonic() - TURN_S)
    assert (progress.sequence.last, progress.is_amid_batch, len(inbox)) == (2, True, 1)


def test_what_is_not_applied_in_a_turn_waits_in_its_place() -> None:
    followed, rng, known = Followed(), random.Random("turn"), list[int]()
    odd = {"type": "BlockStored", "block_hashes": [7], "parent_block_hash": None, "token_ids": [1, 2], "block_size": 2, "lora_name": "a"}
    found = [[b"", struct.pack(">Q", number), pack([time.time(), [odd], 0])] for number in range(4)]
    found += [[b"", struct.pack(">Q", 4), plain(rng, known, time.time())]]
    inbox, progress = followed.stream.inbox, followed.stream._progress
    inbox.put_all(found)
    calls = 0
    while inbox:
        assert not progress.apply_waiting(followed.stream._apply_frames, time.monotonic() - TURN_S)
        assert [frames for _, frames in inbox.kept()] == found[len(found) - len(inbox) :]
        calls += 1
    followed._finish()
    assert calls >= len(found)
    assert progress.sequence.last == 4


def test_an_error_of_ours_costs_the_message_that_met_it() -> None:
    followed = Followed()
    found = [[b"", struct.pack(">Q", number), b""] for number in range(3)]
    inbox, progress = followed.stream.inbox, followed.stream._progress
    inbox.put_all(found)

    def fail(_: list[bytes]) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        progress.apply_waiting(fail, math.inf)
    assert [frames for _, frames in inbox.kept()] == found[1:]
