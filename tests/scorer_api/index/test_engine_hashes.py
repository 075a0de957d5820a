"""Asking by the engine's own hashes: how they are read, and what each stream knows by them."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from indexer.core.change import Change, HashMapping
from indexer.core.events import Tier
from indexer.core.groups import CacheShape, Group
from scorer_api.index.engine_hashes import FollowedHashes, keys_of, normalised
from scorer_api.index.holders import Holders
from tests.engine import Engine, cleared, removed, stored
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.waiting import wait_until

DATA = Path(__file__).parents[2] / "data"
DIGEST = hashlib.sha256(b"a block").digest()
EIGHT = list(range(1, 9))

# As they are written


def test_hashes_are_normalised_as_engines_are_read() -> None:
    last = int.from_bytes(DIGEST[-8:], "big")
    assert normalised([0, 2**64 - 1]) == [0, 2**64 - 1]
    assert normalised([DIGEST, DIGEST.hex(), DIGEST.hex().upper(), DIGEST[-8:], last]) == [last] * 5


@pytest.mark.parametrize("wrong", [-1, 2**64, b"1234567", "123456789abcde", "zz" * 8, "", "123"])
def test_what_is_no_hash_is_named_with_its_position(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"block_hashes\[1\].*should"):
        normalised([1, wrong])


def test_keys_go_up_to_the_first_hash_that_is_not_known() -> None:
    assert keys_of([1, 2, 3, 1], {1: 10, 3: 30}.get) == [10]
    assert keys_of([1, 3, 1], {1: 10, 3: 30}.get) == [10, 30, 10]
    assert keys_of([], {}.get) == []


def change(keys: dict[int, int] | None = None, gone: list[int] | None = None, *, tier: Tier = Tier.GPU, held: bool = True) -> Change:
    made = Change()
    made.touched[tier].update(dict.fromkeys((keys or {}).values(), held))
    made.hash_mapping = HashMapping(keys or {}, gone or [])
    return made


def test_the_mapping_follows_changes() -> None:
    holders, hashes = Holders({}, CacheShape(4)), FollowedHashes()

    def apply(made: Change) -> dict[int, int]:
        holders.apply(made)
        hashes.apply(made, holders)
        return hashes._keys

    assert apply(change({1: 10, 2: 20})) == {1: 10, 2: 20}
    assert apply(change({3: 30}, [1])) == {2: 20, 3: 30}
    assert apply(change({3: 30}, tier=Tier.CPU)) == {2: 20, 3: 30}
    empty = change()
    empty.clear_gpu()
    assert apply(empty) == {3: 30}, "the hash of what lies in a lower tier keeps its key"
    assert hashes.is_complete
    reload = change({4: 40})
    reload.reload = True
    assert apply(reload) == {4: 40}


def test_a_change_without_a_mapping_leaves_it_incomplete_where_it_adds_blocks() -> None:
    holders, hashes = Holders({}, CacheShape(4)), FollowedHashes()
    gone = Change()
    gone.touched[Tier.GPU][10] = False
    hashes.apply(gone, holders)
    assert hashes.is_complete
    added = Change()
    added.touched[Tier.GPU][10] = True
    hashes.apply(added, holders)
    assert not hashes.is_complete
    in_another_group = Change()
    in_another_group.touched_of(1)[Tier.GPU][10] = True
    hashes = FollowedHashes()
    hashes.apply(in_another_group, holders)
    assert not hashes.is_complete


def test_a_hash_of_a_group_that_a_clear_leaves_below_the_gpu_keeps_its_key() -> None:
    holders, hashes = Holders({}, CacheShape(4, (Group(0), Group(1)))), FollowedHashes()
    made = change({1: 10, 2: 20})
    made.touched_of(1)[Tier.CPU][20] = True
    holders.apply(made)
    hashes.apply(made, holders)
    empty = change()
    empty.clear_gpu()
    holders.apply(empty)
    hashes.apply(empty, holders)
    assert hashes._keys == {2: 20}


# Over HTTP


def score(service: Client, hashes: list[Any], model: str = "m") -> dict[str, Any]:
    response = service.http.post(f"{service.url}/v1/score", json={"model": model, "block_hashes": hashes})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def matched(service: Client, hashes: list[Any], model: str = "m") -> dict[str, int]:
    """Matched blocks by pod."""
    return {pod["pod"]: pod["matched_blocks"] for pod in score(service, hashes, model)["pods"]}


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    """a: three blocks of four tokens, the last one on the cpu. b: two of eight tokens under hashes of its own, the first one under bytes."""
    with Engine() as a, Engine() as b, Running(a.spec("a"), b.spec("b")) as service:
        a.publish(stored([1, 2], EIGHT), stored([3], [9, 10, 11, 12], 2, medium="CPU"))
        b.publish(stored([DIGEST, 2], [*EIGHT, *EIGHT], block_size=8))
        service.wait_for(pod="a", sequence=0, trust="live")
        service.wait_for(pod="b", sequence=0, trust="live")
        yield service


def test_each_stream_is_asked_by_its_own_hashes_and_all_of_them_may_match(service: Client) -> None:
    answer = score(service, [1, 2, 3])
    a, b = answer["pods"]
    assert (answer["tokens"], answer["best"]) == (12, "a")
    assert (a["pod"], a["matched_blocks"], a["usable_blocks"], a["matched_tokens"], a["tiers"]) == ("a", 3, 3, 12, {"gpu": 2, "cpu": 1})
    assert a["score"] == pytest.approx((1 + 1 + 0.8) / 3)
    assert (b["pod"], b["matched_blocks"], b["usable_blocks"], b["score"]) == ("b", 0, 3, 0.0)
    assert matched(service, [DIGEST.hex(), 2]) == {"a": 0, "b": 2}
    assert score(service, [DIGEST.hex(), 2])["pods"][0]["matched_tokens"] == 16
    assert matched(service, [1, 9, 2]) == {"a": 1, "b": 0}
    assert matched(service, []) == {"a": 0, "b": 0}


def test_bytes_are_taken_in_msgpack(service: Client) -> None:
    body = msgspec.msgpack.encode({"model": "m", "block_hashes": [DIGEST, 2]})
    response = service.http.post(f"{service.url}/v1/score", content=body, headers={"Content-Type": "application/msgpack"})
    assert msgspec.msgpack.decode(response.content) == score(service, [DIGEST.hex(), 2])


def test_batches_and_explanations_take_hashes_too(service: Client) -> None:
    requests = [{"model": "m", "block_hashes": [1, 2]}, {"model": "m", "token_ids": [1, 2, 3, 4, 5]}, {"model": "m", "block_hashes": ["12"]}]
    found = service.http.post(f"{service.url}/v1/score/batch", json={"requests": requests}).json()["answers"]
    assert found[:2] == [score(service, [1, 2]), service.score([1, 2, 3, 4, 5])]
    assert found[2]["problem"]["status"] == 422
    answer = service.http.post(f"{service.url}/v1/explain", json={"model": "m", "block_hashes": [1, 2, 3, 4]}).json()
    (rank,) = answer["pods"][0]["ranks"]
    assert (answer["source"], answer["pods"][0]["pod"], rank["runs"]) == ("block_hashes", "a", [["gpu", 2], ["cpu", 1]])
    assert (rank["end"]["reason"], rank["end"]["block"]) == ("never_stored", 3)
    assert "hash" in rank["end"]["detail"]
    same = ("score", "matched_blocks", "usable_blocks", "matched_tokens")
    scored = score(service, [1, 2, 3, 4])["pods"][0]
    assert {name: answer["pods"][0][name] for name in same} == {name: scored[name] for name in same}


@pytest.mark.parametrize("hashes", [[-1], [2**64], ["zz" * 8], ["1234"], [1.5], [None], "ab", {}])
def test_what_is_no_list_of_hashes_is_refused(service: Client, hashes: Any) -> None:
    response = service.http.post(f"{service.url}/v1/score", json={"model": "m", "block_hashes": hashes})
    assert (response.status_code, "block_hashes" in response.json()["detail"]) == (422, True)


def test_tokens_and_hashes_together_are_refused(service: Client) -> None:
    response = service.http.post(f"{service.url}/v1/score", json={"model": "m", "block_hashes": [1], "token_ids": [1]})
    assert response.status_code == 422
    assert "token_ids and block_hashes" in response.json()["detail"]
    ghost = service.http.post(f"{service.url}/v1/score", json={"model": "ghost", "block_hashes": [1]})
    assert ghost.status_code == 404


# Against what a real engine sent


class Naive:
    """What an engine holds by its own word: hash → copies, and who follows whom. It shares no code with the index."""

    def __init__(self) -> None:
        self.copies: Counter[int] = Counter()
        self.parents: dict[int, int | None] = {}

    def apply(self, payload: bytes) -> None:
        for event in msgspec.msgpack.decode(payload)[1]:
            fields = event if isinstance(event, dict) else self._as_map(event)
            kind = fields["type"]
            hashes = [self._plain(value) for value in fields.get("block_hashes", ())]
            if kind == "BlockStored":
                parent = fields["parent_block_hash"]
                for before, name in zip([None if parent is None else self._plain(parent), *hashes], hashes, strict=False):
                    self.parents[name] = before
                    self.copies[name] += 1
            elif kind == "BlockRemoved":
                self.copies.subtract({name: 1 for name in hashes if self.copies[name]})
            else:
                self.copies.clear()

    @staticmethod
    def _as_map(event: list[Any]) -> dict[str, Any]:
        names = {
            "BlockStored": ("type", "block_hashes", "parent_block_hash"),
            "BlockRemoved": ("type", "block_hashes"),
            "AllBlocksCleared": ("type",),
        }
        return dict(zip(names[event[0]], event, strict=False))

    @staticmethod
    def _plain(value: Any) -> int:
        return int(value) % 2**64 if isinstance(value, int) else int.from_bytes(value[-8:], "big")

    def chain(self, name: int) -> list[int]:
        """All hashes from the first block of a prompt to this one."""
        found = [name]
        while (parent := self.parents.get(found[-1])) is not None:
            found.append(parent)
        return found[::-1]

    def matches(self, chain: list[int]) -> int:
        return next((number for number, name in enumerate(chain) if self.copies[name] <= 0), len(chain))


def frames_of(capture: str, engine: str | None = None) -> list[bytes]:
    frames = msgspec.msgpack.decode((DATA / f"{capture}.frames.msgpack").read_bytes())
    return [payload for _, name, (_, _, payload) in frames if engine in (None, name)]


def chains(naive: Naive) -> list[list[int]]:
    """A prompt's worth of hashes for each of many blocks that the engine ever named, held or not."""
    names = list(naive.parents)
    return [naive.chain(name) for name in names[:: max(1, len(names) // 60)]]


def compare(service: Client, naive: Naive) -> None:
    asked = chains(naive)
    response = service.http.post(f"{service.url}/v1/score/batch", json={"requests": [{"model": "tiny", "block_hashes": chain} for chain in asked]})
    found = [answer["pods"][0]["matched_blocks"] for answer in response.json()["answers"]]
    assert found == [naive.matches(chain) for chain in asked]


def test_a_real_engines_hashes_match_what_it_says_it_holds() -> None:
    """Frames of a real vLLM, and at many points of them the prefix by its own hashes."""
    payloads, naive, compared = frames_of("v028_bs16_main"), Naive(), 0
    with Engine() as engine, Running(engine.spec(model="tiny")) as service:
        for number, payload in enumerate(payloads):
            engine.publish_payload(payload)
            naive.apply(payload)
            if number % 40 == 39 or number == len(payloads) - 1:
                service.wait_for(sequence=number, trust="live")
                compare(service, naive)
                compared += sum(naive.matches(chain) > 0 for chain in chains(naive))
    assert compared > 50


# Over Redis


def test_scorers_that_follow_and_scorers_that_load_know_a_real_engines_hashes() -> None:
    payloads, naive = frames_of("v028_bs16_main"), Naive()
    with ExitStack() as stack:
        redis, engine = stack.enter_context(RedisServer()), stack.enter_context(Engine())
        indexer = stack.enter_context(ingest(redis.url, engine.spec(model="tiny"), engine_hashes="true"))
        first = stack.enter_context(api(redis.url, engine_hashes="true")).wait_url()
        indexer.wait_url()
        wait_until(lambda: is_live(indexer))
        for stop in (150, len(payloads)):
            for payload in payloads[engine.next_number : stop]:
                engine.publish_payload(payload)
                naive.apply(payload)
            late = stack.enter_context(api(redis.url, engine_hashes="true")).wait_url()
            for scorer in (first, late):
                wait_until(partial(is_live, scorer, stop - 1))
                # The status of a stream is some milliseconds ahead of its blocks, or behind them.
                wait_until(partial(agrees, scorer, naive))
        without = stack.enter_context(api(redis.url)).wait_url()
        wait_until(lambda: is_live(without))
        response = without.http.post(f"{without.url}/v1/score", json={"model": "tiny", "block_hashes": [1]})
        assert (response.status_code, "--engine-hashes" in response.json()["detail"]) == (501, True)
        assert without.metric("kv_indexer_score_requests_total", outcome="no_engine_hashes") == 1


def agrees(service: Client, naive: Naive) -> bool:
    try:
        compare(service, naive)
    except AssertionError:
        return False
    return True


def is_live(service: Client, sequence: int | None = None) -> bool:
    pods = service.http.get(f"{service.url}/v1/pods").json()["pods"]
    return any(s["trust"] == "live" and (sequence is None or s["sequence"] == sequence) for pod in pods for s in pod["streams"])


def test_an_indexer_that_logs_no_hashes_is_told_of() -> None:
    with RedisServer() as redis, Engine() as engine, ingest(redis.url, engine.spec()) as indexer, api(redis.url, engine_hashes="true") as scorer:
        scorer.wait_url()
        indexer.wait_url()
        wait_until(lambda: is_live(scorer))
        engine.publish(stored([1, 2], EIGHT))
        wait_until(lambda: scorer.matched([*EIGHT, 9]) == 8)
        engine.publish(stored([3], [9, 10, 11, 12], 2))
        wait_until(lambda: scorer.matched([*range(1, 14)]) == 12)
        response = scorer.http.post(f"{scorer.url}/v1/score", json={"model": "m", "block_hashes": [1]})
        assert (response.status_code, "indexers with --engine-hashes" in response.json()["detail"]) == (501, True)


def test_clears_removals_and_lower_tiers_reach_a_follower() -> None:
    """The service is both in one process, and follows what it writes."""
    with RedisServer() as redis, Engine() as engine, serve(redis.url, engine.spec(), engine_hashes="true") as service:
        service.wait_url()
        wait_until(lambda: is_live(service))
        engine.publish(stored([1, 2, 3], [*range(1, 13)]))
        engine.publish(stored([1], [], medium="CPU"))
        wait_until(lambda: matched(service, [1, 2, 3]) == {"pod": 3})
        engine.publish(removed([3]))
        wait_until(lambda: matched(service, [1, 2, 3]) == {"pod": 2})
        engine.publish(cleared())
        wait_until(lambda: matched(service, [1, 2, 3]) == {"pod": 1})
        assert score(service, [1, 2, 3])["pods"][0]["tiers"] == {"cpu": 1}
        engine.publish(stored([2], [5, 6, 7, 8], 1))
        wait_until(lambda: matched(service, [1, 2, 3]) == {"pod": 2})
