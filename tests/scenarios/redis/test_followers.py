"""Scorers that start late, fall behind, or miss an entry of the log find back by themselves."""

import struct
import time
from collections.abc import Callable

import pytest

from tests.engine import batch, stored
from tests.fleet import Fleet
from tests.running import Client
from tests.scenarios.redis.world import Explained, World, owners, wait_ready
from tests.waiting import wait_until
from tests.workload import make_texts

mechanism = pytest.mark.mechanism
MakeWorld = Callable[..., World]
STREAMS = 8
BLOCKS = 64
BLOCK_SIZE = 4
EVENTS_PER_BATCH = 16
# As many as it takes for the load to be made of many pieces; and as many as docs/explanation/performance.md speaks of.
COPIES = 200_000
COPIES_AT_SCALE = 1_000_000
# Four times what is promised.
READY_S = 60.0
NOTICED_S = 20.0
LIVE_S = 4.0
# So many blocks take Redis some milliseconds. A command may take longer all the same: the machine took Redis's processor away.
PIECE_MAX = 4_000


def bulk_tokens(stream: int, number: int) -> list[int]:
    """A prompt of 64 blocks that only this stream holds."""
    first = (stream << 20 | number) << 9
    return [(first + position) % 2**32 for position in range(BLOCKS * BLOCK_SIZE)]


def bulk_batch(stream: int, numbers: range) -> bytes:
    events = []
    for number in numbers:
        (salt,) = struct.unpack("<Q", struct.pack("<II", number, stream + 1))
        hashes = [(salt << 6 | block) * 0x9E3779B97F4A7C15 % 2**64 for block in range(BLOCKS)]
        events.append(stored(hashes, bulk_tokens(stream, number), block_size=BLOCK_SIZE))
    return batch(events, None)


def publish_bulk(fleet: Fleet, copies: int) -> int:
    """Every stream of the fleet stores its part of so many blocks besides what its reference knows. Returns prompts per stream."""
    prompts = copies // BLOCKS // len(fleet.publishers)
    for first in range(0, prompts, EVENTS_PER_BATCH):
        for stream, publisher in enumerate(fleet.publishers):
            publisher.engine.publish_payload(bulk_batch(stream, range(first, min(first + EVENTS_PER_BATCH, prompts))))
    return prompts


def bulk_is_right(fleet: Fleet, scorer: Client, prompts: int) -> bool:
    """A sample: each prompt is held as a whole by its own stream and by nobody else."""
    for stream, publisher in enumerate(fleet.publishers):
        for number in (0, prompts // 2, prompts - 1):
            answer = scorer.score([*bulk_tokens(stream, number), 1], fleet.model)
            held = {pod["pod"]: pod["matched_blocks"] for pod in answer["pods"] if pod["matched_blocks"]}
            if held != {publisher.pod: BLOCKS}:
                return False
    return True


@mechanism("hashes_read_at_once")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("copies", [COPIES, pytest.param(COPIES_AT_SCALE, marks=pytest.mark.scale)])
def test_a_scorer_starts_late_against_many_block_copies(make_world: MakeWorld, copies: int) -> None:
    """Ready in time, right while changes keep coming; it reads in pieces, none of which holds Redis up for long."""
    world = make_world(pod_expiry_s=60)
    fleet = world.fleet(streams=STREAMS, uniform=True, without=("clear",))
    world.indexers(2, fleet)
    (early,) = world.scorers(1)
    wait_until(lambda: len(owners(early)) == STREAMS, what="the scorer to know all streams")
    prompts = publish_bulk(fleet, copies)
    wait_until(lambda: bulk_is_right(fleet, early, prompts), 240, "the bulk to be indexed")
    fleet.play(200)
    fleet.settle(early)
    fleet.resume()
    with world.redis.counting() as calls:
        started_s = time.monotonic()
        (late,) = world.scorers(1)
        wait_ready(late, timeout_s=READY_S)
        ready_after_s = time.monotonic() - started_s
    assert ready_after_s < READY_S
    assert bulk_is_right(fleet, late, prompts)
    explained = Explained(fleet, LIVE_S)
    explained.once(late)
    assert explained.wrong == []
    fleet.settle(late, early)
    assert bulk_is_right(fleet, late, prompts)
    assert not {"hvals", "hkeys", "keys", "scan"} & set(calls)
    assert calls["hscan"] >= copies / PIECE_MAX


@mechanism("one_removal_is_enough")
@pytest.mark.timeout(240)
def test_a_key_that_two_hashes_hold_is_still_held_when_one_goes_during_a_load(make_world: MakeWorld) -> None:
    """Which of the two a scorer has already read when the other's removal comes makes no difference."""
    world = make_world(pod_expiry_s=30)
    fleet = world.fleet(streams=1, texts=make_texts(1, count=100))
    world.indexers(1, fleet)
    (early,) = world.scorers(1)
    wait_until(lambda: len(owners(early)) == 1, what="the scorer to know the stream")
    prompts = publish_bulk(fleet, 100_000)
    wait_until(lambda: bulk_is_right(fleet, early, prompts), 120, "the bulk to be indexed")
    for name in (0, 1):
        for text in fleet.texts:
            whole = fleet.publisher("pod-0").blocks(text)
            fleet.do("pod-0", lambda p, text=text, whole=whole: [*p.store(text, 0, whole), *p.store(text, 0, whole, renames_last=True)])
        fleet.settle(early)
        late = world.launch_scorer()
        ends = {text.until(fleet.publisher("pod-0").blocks(text), BLOCK_SIZE) for text in fleet.texts}
        for copy in [copy for copy in fleet.publisher("pod-0").rank.copies if copy.name == name and copy.text in ends]:
            fleet.do("pod-0", lambda p, copy=copy: p.remove([copy]))
            time.sleep(0.02)
        late.wait_url()
        fleet.settle(late, early)


@mechanism("no_doubt_of_the_log")
def test_a_scorer_that_falls_behind_the_capped_log_loads_again(world: World) -> None:
    """Frozen while more is logged than the log keeps, it notices and ends up right; until then nothing that it says is live and wrong."""
    fleet = world.fleet(streams=4)
    world.indexers(2, fleet, log_entries_max="200")
    early, slow = world.scorers(2)
    fleet.play(100)
    fleet.settle(early, slow)
    slow.freeze()
    fleet.play(3_000)
    fleet.settle(early)
    slow.thaw()
    fleet.settle(slow, timeout_s=NOTICED_S)


def log_of(world: World) -> bytes:
    """The one log that there is."""
    (name,) = world.redis.client().scan_iter(match="kvi:*", _type="STREAM", count=1000)
    return bytes(name)


@mechanism("no_comparing_of_states")
def test_a_lost_last_entry_of_a_silent_engine_is_noticed(make_world: MakeWorld) -> None:
    """The log loses its last entries and nothing comes after them: within five seconds the scorer loads that stream again, and no other."""
    world = make_world(pod_expiry_s=30)
    fleet = world.fleet(streams=6)
    world.indexers(2, fleet)
    early, late = world.scorers(2)
    wait_ready(early, late)
    fleet.play(200)
    fleet.settle(early, late)
    client, log = world.redis.client(), log_of(world)
    late.freeze()
    text = fleet.texts[0]
    # What it waited for when it was frozen has been sent to it already, so that it is not the last.
    fleet.do("pod-2", lambda p: p.store(text, 0, 1))
    fleet.settle(early)
    ((last, _),) = client.xrevrange(log, count=1)
    fleet.do("pod-2", lambda p: [p.clear(), *p.store(text, 0, 2)])
    fleet.settle(early)
    lost = [name for name, _ in client.xrange(log, min=b"(" + last)]
    assert lost
    assert client.xdel(log, *lost) == len(lost)
    with world.redis.monitoring() as seen:
        late.thaw()
        fleet.settle(late, timeout_s=NOTICED_S)
    loads = [command for command in seen if command.split()[0].upper() == "HSCAN"]
    assert loads
    assert all("pod-2" in command for command in loads), loads


def test_a_scorer_whose_connections_are_cut_finds_back(world: World) -> None:
    """Redis closes them all, as a proxy in between would; what was logged meanwhile is not missed."""
    fleet = world.fleet(streams=4)
    indexers, scorers = world.indexers(2, fleet), world.scorers(2)
    fleet.resume()
    client = world.redis.client()
    for _ in range(5):
        wait_until(lambda before=fleet.batches: fleet.batches > before + 50)
        client.client_kill_filter(_type="normal", skipme=True)
    fleet.settle(*scorers)
    assert all(process.is_running for process in (*indexers, *scorers))
    assert sum(indexer.metric("kv_indexer_fenced_total") for indexer in indexers) == 0


@mechanism("trusted_for_ever")
def test_answers_of_a_scorer_say_how_old_its_view_is(make_world: MakeWorld) -> None:
    """With owners about it is young; without them it ages, and what nobody confirms is stale."""
    world = make_world(pod_expiry_s=60)
    fleet = world.fleet(streams=2)
    (indexer,), (scorer,) = world.indexers(1, fleet), world.scorers(1)
    fleet.play(50)
    fleet.settle(scorer)
    wait_until(lambda: scorer.score([1], fleet.model)["view"]["age_s"] < 4)
    assert scorer.score([1], fleet.model)["view"]["source"] == "redis"
    indexer.kill()
    wait_until(lambda: {pod["trust"] for pod in scorer.score([1], fleet.model)["pods"]} == {"stale"}, NOTICED_S)
    wait_until(lambda: set(owners(scorer).values()) == {None})
    age_s = scorer.score([1], fleet.model)["view"]["age_s"]
    wait_until(lambda: scorer.score([1], fleet.model)["view"]["age_s"] > age_s)
