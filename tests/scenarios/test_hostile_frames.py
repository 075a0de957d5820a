"""What no engine sends, over real sockets, at a service in a process of its own: it stays up, within its memory, and goes right afterwards."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from indexer.http.loop_lag import BUCKETS_S
from tests.engine import Engine, batch, removed, stored
from tests.hostile_payloads import memory_bytes
from tests.running import Command
from tests.settings import QUICK, words_of
from tests.slowness import slowness
from tests.waiting import wait_until

MIB = 2**20
# What a message may take on top of itself while it is decoded (docs/explanation/performance.md), and what it takes itself, on its way and in the
# inbox.
GROWTH_MAX = 128 * MIB + 64 * MIB


def block(number: int) -> dict[str, Any]:
    return stored([number], [number, 1, 2, 3])


def prompt(number: int) -> list[int]:
    return [number, 1, 2, 3, 9]


class Pair:
    """A service with a hostile pod and a calm one, and what each has published so far."""

    def __init__(self, service: Command, hostile: Engine, calm: Engine) -> None:
        self.service, self.hostile, self.calm = service, hostile, calm
        self._number = 0

    def next(self) -> int:
        """A number that no block has had yet."""
        self._number += 1
        return self._number

    def publish_good(self, pod: str) -> None:
        """A block that is seen in a score, once all is applied that the pod has published."""
        engine = self.hostile if pod == "hostile" else self.calm
        number = self.next()
        self.service.wait_for(pod=pod, sequence=engine.publish(block(number)), connected=True, timeout_s=60)
        assert self.service.matched(prompt(number), pod=pod) == 4

    def refused(self) -> dict[str, int]:
        """Refusals by reason."""
        text = self.service.http.get(f"{self.service.url}/metrics").text
        return {reason: int(float(count)) for reason, count in re.findall(r'kv_indexer_refused_total{reason="(\w+)"} (\S+)', text) if float(count)}

    def growth(self) -> int:
        """How far the peak of the service's memory lies above what it was at the start."""
        return memory_bytes("VmHWM", self.service.process.pid) - self._before

    def settle(self) -> None:
        for pod in ("hostile", "calm"):
            self.service.wait_for(pod=pod, trust="live")
            self.publish_good(pod)
        self._before = memory_bytes("VmHWM", self.service.process.pid)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Engine() as hostile, Engine() as calm:
        words = words_of({**QUICK, "port": "0", "replay_idle_s": "2", "replay_give_up_s": "4"})
        with Command("serve", *words, "--engine", hostile.spec("hostile"), "--engine", calm.spec("calm")) as service:
            pair = Pair(service.wait_url(), hostile, calm)
            pair.settle()
            yield pair
            assert service.process.poll() is None, "it stays up"
            status = service.stream("calm")
            assert (status["trust"], status["connected"], status["gaps"], status["restarts"]) == ("live", True, 0, 0)
            assert not [line for line in service.lines if "Traceback" in line or "ERROR" in line]


@pytest.mark.rule("E1")
def test_frames_of_a_hundred_megabytes_end_the_connection_and_nothing_else(pair: Pair) -> None:
    """The engine keeps them in its history too: each replay is refused the same way, until the stream goes on without."""
    subscribed = pair.hostile.subscriptions()
    for _ in range(3):
        pair.hostile.publish_payload(bytes(100 * MIB))
        pair.publish_good("calm")
    wait_until(lambda: pair.hostile.subscriptions() > subscribed, what="a new connection")

    def goes_on() -> bool:
        """Its next batches are applied: the first ones may still be lost with a connection that ends."""
        number = pair.hostile.publish(block(pair.next()))
        return bool(pair.service.stream("hostile")["sequence"] == number)

    wait_until(goes_on, 60)
    pair.publish_good("hostile")
    pair.publish_good("calm")
    assert pair.service.stream("hostile")["trust"] == "partial"
    assert pair.growth() < GROWTH_MAX


def test_a_frame_just_within_the_limit_is_taken(pair: Pair) -> None:
    number = pair.next()
    field = "x" * (32 * MIB - 1000)
    pair.hostile.publish({**block(number), "news": field})
    pair.publish_good("hostile")
    assert pair.service.matched(prompt(number), pod="hostile") == 4
    assert pair.service.metric("kv_indexer_unknown_total", what="field") == 1
    assert pair.refused() == {}
    assert pair.growth() < GROWTH_MAX


@pytest.mark.rule("E1")
def test_batches_of_a_million_events_are_refused_by_reason_and_within_memory(pair: Pair) -> None:
    million = [
        batch([{"type": "AllBlocksCleared"}] * 10**6),
        batch([["BlockRemoved", [2]]] * 10**6),
        batch([None] * 10**6),
        batch([{}] * 10**6),
        batch([[]] * 10**6),
    ]
    for payload in million:
        pair.hostile.publish_payload(payload)
        pair.publish_good("calm")
    pair.publish_good("hostile")
    assert pair.refused() == {"batch_events": len(million)}
    status = pair.service.stream("hostile")
    assert (status["trust"], status["last_error"], status["gaps"]) == ("partial", "refused: batch_events", 0)
    assert pair.service.matched(prompt(1), pod="hostile") == 4, "none of the clears was applied"
    assert pair.growth() < GROWTH_MAX


WRONG: list[tuple[str, Any, str]] = [
    # Field of a stored event, what it can never be, and the reason.
    *(("block_hashes", [value], "hash_type") for value in (None, True, 1.5, "12345678", [], [1], {}, msgspec.msgpack.Ext(5, b"12345678"))),
    *(("block_hashes", [value], "hash_length") for value in (b"", b"1234567")),
    *(("block_hashes", value, "event_malformed") for value in (None, 1, "12345678", b"12345678", {})),
    *(("token_ids", [1, 2, 3, value], "token_type") for value in (None, True, 1.5, 4.0, b"4", {}, msgspec.msgpack.Ext(5, b"4"))),
    *(("token_ids", [1, 2, 3, value], "token_range") for value in (-1, -(2**63), 2**32, 2**64 - 1)),
    ("token_ids", [1, 2, 3, "digest"], "token_text"),
    ("token_ids", [[1, 2], [2, 3], [3, 4], [4, None]], "token_type"),
    *(("token_ids", value, "event_malformed") for value in (None, 4, "1234", b"1234", {})),
    *(("token_ids", value, "unaligned") for value in ([1], [1, 2, 3, 4, 5])),
    *(("parent_block_hash", value, "event_malformed") for value in (True, 1.5, "12345678", [], {})),
    ("parent_block_hash", b"short", "hash_length"),
    *(("block_size", value, "event_malformed") for value in (None, True, "4", 1.5, [])),
    *(("block_size", value, "block_size") for value in (-4, 65_537, 2**64 - 1)),
    *(("extra_keys", value, "extra_keys") for value in ([None] * 2, ["salt"], [5])),
    ("extra_keys", [[["x" * 70_000, 0]]], "event_limit"),
    ("medium", 5, "event_malformed"),
    ("group_idx", "0", "event_malformed"),
]
ORDER = ["type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys", "group_idx"]


def wrong_events(form: str) -> list[tuple[Any, str]]:
    """A stored event for each wrong value, in one form, with its reason."""
    made: list[tuple[Any, str]] = []
    for field, value, reason in WRONG:
        event = stored([77], [77, 1, 2, 3], **{field: value}) if field not in ("block_hashes", "token_ids") else {**block(77), field: value}
        if field == "parent_block_hash":
            event = {**block(77), field: value}
        made.append((event if form == "map" else [event[name] for name in ORDER], reason))
    return made


@pytest.mark.parametrize("form", ["map", "array"])
def test_hashes_and_tokens_of_every_wrong_type_cost_their_event_only(pair: Pair, form: str) -> None:
    expected: dict[str, int] = {}
    held = []
    for event, reason in wrong_events(form):
        expected[reason] = expected.get(reason, 0) + 1
        before, after, gone = pair.next(), pair.next(), pair.next()
        pair.hostile.publish(block(before), block(gone), event, removed([gone]), block(after))
        held += [before, after]
    pair.publish_good("calm")
    pair.publish_good("hostile")
    assert pair.refused() == expected
    assert [pair.service.matched(prompt(number), pod="hostile") for number in held] == [4] * len(held)
    assert pair.service.matched(prompt(77), pod="hostile") == 0
    assert pair.service.stream("hostile")["blocks"] == {"gpu": len(held) + 2}


@pytest.mark.parametrize("levels", [100_000, 3_000_000])
def test_what_is_nested_too_deeply_costs_its_event_or_its_batch(pair: Pair, levels: int) -> None:
    """Where events end in a batch is found without recursion, in up to half a million items; of a deeper one nothing is known."""
    before, after = pair.next(), pair.next()
    good = [msgspec.msgpack.encode(block(number)) for number in (before, after)]
    deep = b"\x91" * levels + b"\xc0"
    pair.hostile.publish_payload(b"\x93\xcb\x3f\xf8" + bytes(6) + b"\x93" + good[0] + deep + good[1] + b"\xc0")
    pair.publish_good("hostile")
    pair.publish_good("calm")
    is_found = levels <= 500_000
    assert pair.refused() == ({"event_nested": 1} if is_found else {"batch_nested": 1})
    assert [pair.service.matched(prompt(number), pod="hostile") for number in (before, after)] == [4 * is_found] * 2
    assert pair.service.stream("hostile")["trust"] == "partial"
    assert pair.growth() < GROWTH_MAX


def chain(count: int, **more: Any) -> list[dict[str, Any]]:
    """Events of one block each, one behind the other."""
    return [stored([number], [number, 1, 2, 3], parent=number - 1 if number > FIRST else None, **more) for number in range(FIRST, FIRST + count)]


FIRST = 1_000_000
MANY = 65_536
IMAGES = stored(
    range(FIRST, FIRST + MANY), [number % 50_000 for number in range(4 * MANY)], extra_keys=[[[f"image {number}", 0]] for number in range(MANY)]
)
TINY = 31 * MIB
LARGE = {
    "many events": (chain(60_000), []),
    "clears": (chain(60_000), [{"type": "AllBlocksCleared"}] * 60_000),
    "offloads": (chain(60_000), chain(60_000, medium="CPU")),
    "children before their parents": (chain(60_000)[:0:-1], chain(1)),
    "one event": ([IMAGES], [{**block(1), "news": msgspec.Raw(b"\xdd" + TINY.to_bytes(4, "big") + b"\x80" * TINY)}]),
}


@pytest.mark.parametrize("of", LARGE)
def test_no_batch_keeps_others_waiting(pair: Pair, of: str) -> None:
    """Each of many events would take about a second in one step. The calm engine goes on meanwhile."""
    busy = slowness()
    for events in LARGE[of]:
        if events:
            number = pair.hostile.publish(*events)
            pair.publish_good("calm")
            pair.service.wait_for(pod="hostile", sequence=number, timeout_s=60)
            busy = max(busy, slowness())
    seconds = next(bound for bound in BUCKETS_S if bound >= min(0.5 * busy, BUCKETS_S[-1]))
    assert pair.service.late(seconds=seconds) <= 1, "a machine that is busy with something else may be late once"
    pair.publish_good("hostile")
    assert pair.refused() == {}


@pytest.mark.rule("E1")
def test_messages_of_a_wrong_shape_are_counted_and_passed_over(pair: Pair) -> None:
    for frames in ([b""], [b"", bytes(8)], [b"", bytes(8), b"", b""], [b"x"] * 2000):
        pair.hostile.send(frames)
    for number in (b"", b"1234567", b"123456789", b"\xff" * 8):
        pair.hostile.send([b"", number, batch([block(pair.next())])])
    pair.publish_good("hostile")
    assert pair.refused() == {"frame_count": 4, "frame_sequence": 4}
    assert pair.service.stream("hostile")["gaps"] == 0
    assert pair.service.stream("hostile")["blocks"] == {"gpu": 2}
