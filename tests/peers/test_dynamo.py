"""`--compat dynamo` beside Dynamo's own stand-alone indexer: the same events, the same questions, the same answers.

Left out: cache salts in `extra_keys`, which that server passes over, and engines whose hashes of the same block differ, which it takes to be equal.
"""

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from tests.engine import Engine, batch, cleared, removed, stored
from tests.ports import free_port
from tests.running import NO_AUTHORITIES, ROOT, Running
from tests.waiting import wait_until

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
pytestmark = [pytest.mark.peers, pytest.mark.skipif(not PYTHON.exists(), reason="Dynamo's indexer is not installed, see Makefile")]

SIZE = 4
HASHES = """
import json, sys
from dynamo._core import compute_block_hash_for_seq
print(json.dumps([compute_block_hash_for_seq(tokens, 4, lora_name=adapter) for tokens, adapter in json.load(sys.stdin)]))
"""
Instance = tuple[int, int, str]
INSTANCES: list[Instance] = [(1, 0, "default"), (2, 0, "default"), (2, 1, "default"), (3, 0, "acme")]
"""Instance, rank and routing group of each stream."""


class DynamoIndexer:
    """`python -m dynamo.indexer` in a process of its own. `peers`: where it gets its first blocks from."""

    def __init__(self, *peers: str, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._words = [
            str(PYTHON),
            "-m",
            "dynamo.indexer",
            "--port",
            str(self.port),
            "--threads",
            "1",
            *(("--peers", ",".join(peers)) if peers else ()),
        ]
        self._log = log
        self.http = httpx.Client(timeout=30, verify=NO_AUTHORITIES)

    def __enter__(self) -> Self:
        self._file = self._log.open("w")
        self._process = subprocess.Popen(self._words, stdout=self._file, stderr=subprocess.STDOUT)
        wait_until(self._is_up)
        return self

    def _is_up(self) -> bool:
        try:
            return self.http.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()
        self._process.terminate()
        self._process.wait(30)
        self._file.close()


class History:
    """What one stream announces, at random: chains that grow, leaves that are evicted or offloaded, prefixes that engines share."""

    def __init__(self, engine: Engine, rank: int, rng: random.Random, *, offloads: bool, clears: bool) -> None:
        self._engine = engine
        self._rank = rank
        self._rng = rng
        self._offloads = offloads
        self._clears = clears
        self.held: dict[int, tuple[int | None, list[int], str | None]] = {}
        """Engine hash → parent, all tokens up to the block's end, and adapter."""
        self._offloaded: set[int] = set()
        self.prompts: list[tuple[list[int], str | None]] = []

    def announce(self, *events: Any) -> None:
        self._engine.publish_payload(batch(events, self._rank))

    def step(self) -> None:
        leaves = self.held.keys() - {parent for parent, _, _ in self.held.values()} - self._offloaded
        kind = self._rng.random()
        if kind < 0.6 or not leaves:
            self._grow()
        elif kind < 0.8:
            leaf = self._rng.choice(sorted(leaves))
            del self.held[leaf]
            self.announce(removed([leaf]))
        elif self._offloads:
            self._offload(self._rng.choice(sorted(leaves)))
        elif self._clears and kind > 0.98:
            self.held.clear()
            self.announce(cleared())

    def _grow(self) -> None:
        parents = [None, *(each for each in sorted(self.held) if each not in self._offloaded)]
        parent = self._rng.choice(parents)
        _, tokens, adapter = (None, [], self._rng.choice([None, None, "ad"])) if parent is None else self.held[parent]
        hashes, new = [], list(tokens)
        before = parent
        for _ in range(self._rng.randint(1, 4)):
            new = [*new, *[self._rng.randint(1, 3)] * SIZE]
            if hash_of(new, adapter) in self.held:
                break  # an engine announces no block twice that it has
            engine_hash = hash_of(new, adapter)
            self.held[engine_hash] = before, new, adapter
            before = engine_hash
            hashes.append(before)
        if hashes:
            more = fields_of(adapter, len(hashes))
            end = self.held[hashes[-1]][1]
            self.announce(stored(hashes, end[len(tokens) :], parent, block_size=SIZE, **more))
            self.prompts.append((end, adapter))

    def _offload(self, leaf: int) -> None:
        parent, tokens, adapter = self.held[leaf]
        self._offloaded.add(leaf)
        self.announce(stored([leaf], tokens[-SIZE:], parent, block_size=SIZE, medium="CPU", **fields_of(adapter, 1)))
        self.announce(removed([leaf]))


def fields_of(adapter: str | None, blocks: int) -> dict[str, Any]:
    """What an event says besides of blocks of a LoRA adapter."""
    return {} if adapter is None else {"lora_name": adapter, "lora_id": 1, "extra_keys": [[adapter]] * blocks}


def hash_of(tokens: list[int], adapter: str | None) -> int:
    """An engine's hash of a block that ends a prompt: the same on every engine, as that server takes for granted."""
    return int.from_bytes(sha256(repr((tokens, adapter)).encode()).digest()[:8], "big")


class Beside:
    """Both services, and engines that both follow."""

    def __init__(self, ours: Running, peer: DynamoIndexer, engines: dict[Instance, Engine], histories: list[History]) -> None:
        self.ours = ours
        self.peer = peer
        self.engines = engines
        self.prompts = [prompt for history in histories for prompt in history.prompts]

    def ask_both(self, path: str, body: dict[str, Any]) -> tuple[Any, Any]:
        """Status and answer of each."""
        answers = [service.http.post(f"{service.url}{path}", json=body) for service in (self.ours, self.peer)]
        return (answers[0].status_code, answers[0].json()), (answers[1].status_code, answers[1].json())


def register(service: Running | DynamoIndexer, engines: dict[Instance, Engine]) -> None:
    for (instance, rank, group), engine in engines.items():
        body = {"instance_id": instance, "dp_rank": rank, "endpoint": f"tcp://127.0.0.1:{engine.events_port}", "model_name": "m", "block_size": SIZE}
        response = service.http.post(f"{service.url}/register", json={**body, "routing_group": group})
        assert (response.status_code, response.json()) == (201, {"status": "ok"})


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    with ExitStack() as stack:
        engines = {each: stack.enter_context(Engine()) for each in INSTANCES}
        ours = stack.enter_context(Running(compat="dynamo"))
        peer = stack.enter_context(DynamoIndexer(log=tmp_path_factory.mktemp("peer") / "log"))
        for service in (ours, peer):
            register(service, engines)
        for engine in engines.values():
            wait_until(lambda engine=engine: engine.subscriptions() == 2)  # type: ignore[misc]
        histories = [
            History(engine, rank, random.Random(number), offloads=number % 2 == 0, clears=instance == 3)
            for number, ((instance, rank, _), engine) in enumerate(engines.items())
        ]
        for _ in range(300):
            for history in histories:
                history.step()
        end = [99] * SIZE
        for history in histories:
            history.announce(stored([2**40], end, block_size=SIZE))
        for service in (ours, peer):
            for instance, rank, group in INSTANCES:
                wait_until(lambda s=service, i=instance, r=rank, g=group: knows(s, end, i, r, g))  # type: ignore[misc]
        yield Beside(ours, peer, engines, histories)


def knows(service: Running | DynamoIndexer, tokens: list[int], instance: int, rank: int, group: str) -> bool:
    answer = service.http.post(f"{service.url}/query", json={"model_name": "m", "token_ids": tokens, "routing_group": group}).json()
    return answer["scores"].get(str(instance), {}).get(str(rank), 0) == len(tokens)


def bodies(beside: Beside) -> list[dict[str, Any]]:
    rng = random.Random(7)
    asked = []
    for tokens, adapter in rng.sample(beside.prompts, 150):
        cut = tokens[: rng.randint(1, len(tokens))]
        more = {"model_name": "m", "lora_name": adapter, "routing_group": rng.choice(["default", "default", "acme"])}
        asked += [{"token_ids": each, **more} for each in (tokens, cut, [*cut, 9, 9, 9, 9, 9])]
    return asked


def test_the_same_prompts_have_the_same_answers(beside: Beside) -> None:
    asked = bodies(beside)
    assert len(asked) == 450
    matched = tiers = 0
    for body in asked:
        ours, theirs = beside.ask_both("/query", body)
        assert ours == theirs, body
        for figures in ours[1]["instances"].values():
            matched += figures["longest_matched"] > 0
            tiers += figures["cpu"] > figures["gpu"]
    assert matched > 300
    assert tiers > 10, "some continue below the gpu"


def test_hashes_that_its_library_computes_have_the_same_answers(beside: Beside) -> None:
    prompts = random.Random(8).sample(beside.prompts, 150)
    done = subprocess.run([str(PYTHON), "-c", HASHES], input=json.dumps(prompts), capture_output=True, text=True, check=True, timeout=60)
    for hashes in json.loads(done.stdout):
        signed = [each - 2**64 if each >= 2**63 else each for each in hashes]
        ours, theirs = beside.ask_both("/query_by_hash", {"model_name": "m", "block_hashes": signed})
        assert ours == theirs


def test_refusals_have_the_same_codes(beside: Beside) -> None:
    known = {"instance_id": 1, "model_name": "m", "endpoint": "tcp://127.0.0.1:9", "block_size": SIZE}
    for path, body in [
        *[("/query", {"model_name": "zz", "token_ids": []}), ("/query_by_hash", {"model_name": "m", "block_hashes": [1], "cache_salt": "s"})],
        *[
            ("/register", known),
            ("/register", {**known, "instance_id": 9, "block_size": 8}),
            ("/register", {**known, "instance_id": 9, "endpoint": "x"}),
        ],
        *[("/register", {**known, "model_name": "zz"}), ("/unregister", {"instance_id": 9, "model_name": "m"})],
        *[("/unregister", {"instance_id": 1, "model_name": "zz"}), ("/unregister", {**known, "routing_group": "default", "dp_rank": 9})],
    ]:
        (ours, our_answer), (theirs, their_answer) = beside.ask_both(path, body)
        assert (ours, our_answer.keys()) == (theirs, their_answer.keys()) == (theirs, {"error"}), (path, body)
    for path, content in [
        ("/query", b"{"),
        ("/query", b"{}"),
        ("/query", b'{"model_name":"m","token_ids":[-1]}'),
        ("/register", b'{"instance_id":-1}'),
    ]:
        headers = {"Content-Type": "application/json"}
        codes = [service.http.post(f"{service.url}{path}", content=content, headers=headers).status_code for service in (beside.ours, beside.peer)]
        assert codes[0] == codes[1], (path, content)
        assert beside.ours.http.post(f"{beside.ours.url}{path}", content=content).status_code == 415


def test_workers_are_told_alike(beside: Beside) -> None:
    ours, theirs = (
        sorted(service.http.get(f"{service.url}/workers").json(), key=lambda worker: worker["instance_id"]) for service in (beside.ours, beside.peer)
    )
    assert ours == theirs


def test_another_of_its_indexers_starts_from_our_dump(beside: Beside, tmp_path: Path) -> None:
    with DynamoIndexer(beside.ours.url, log=tmp_path / "log") as second:
        register(second, beside.engines)
        later = Beside(beside.ours, second, beside.engines, [])
        for body in bodies(beside):
            ours, theirs = later.ask_both("/query", body)
            assert ours == theirs, body
