"""A real engine's frames, played into the running service, and the engine's own word on its cache hits."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.engine import Engine
from tests.engine_server import EngineServer
from tests.recorder import Process
from tests.running import Client, Command
from tests.settings import words_of
from tests.waiting import wait_until

DATA = Path(__file__).parent.parent / "data"
# What no index can know: an idle engine holds its reset back, and after a report of hits copies cannot be counted.
UNKNOWABLE = {"after_reset", "report_full_final"}

Request = dict[str, Any]


class Player:
    """Plays a capture in order, frame by frame, and scores each sequential request just before the engine saw it."""

    def __init__(self, name: str, *, lost_every: int | None = None, as_text: bool = False) -> None:
        self.frames: list[tuple[float, str, list[bytes]]] = msgspec.msgpack.decode((DATA / f"{name}.frames.msgpack").read_bytes())
        self.requests: list[Request] = json.loads((DATA / f"{name}.requests.json").read_text())
        self.engines = {name: Engine(topic=self._topic(name)).start() for name in sorted({frame[1] for frame in self.frames})}
        self.lost_every = lost_every
        self.as_text = as_text
        self.api = EngineServer(routes={"/tokenize": self.tokenize})
        self.asked_as: Counter[str] = Counter()
        self.played = 0
        self.compared = 0
        self.wrong: list[tuple[str, int, int]] = []

    def _topic(self, engine: str) -> bytes:
        return next(frames[0] for _, name, frames in self.frames if name == engine)

    def specs(self) -> list[str]:
        more = {"http": self.api.url} if self.as_text else {}
        return [engine.spec(name, "tiny", **more) for name, engine in self.engines.items()]

    def tokenize(self, asked: Request) -> tuple[int, bytes]:
        """What the captured engine answered to the same text."""
        for row in self.requests:
            if row.get("tokenize_ids") and all(row[name] == asked.get(name) for name in ("model", "prompt", "messages")):
                return 200, json.dumps({"count": len(row["tokenize_ids"]), "max_model_len": 768, "tokens": row["tokenize_ids"]}).encode()
        return 404, b'{"message": "this text was never captured"}'

    def close(self) -> None:
        for engine in self.engines.values():
            engine.kill()

    def play(self, service: Client, stop: int | None = None) -> None:
        for request in self.requests[:stop]:
            if request["kind"] == "STOP":
                self.play_frames(request["frames"])
                self.catch_up(service)
                restarts = service.stream(request["engine"])["restarts"]
                self.stop(request["engine"])
                service.wait_for(pod=request["engine"], connected=False)
            elif request["kind"] == "UP":
                self.start(request["engine"])
                service.wait_for(pod=request["engine"], connected=True, sequence=None, restarts=restarts + 1)
            elif request.get("sequential"):
                self.play_frames(request["frames_before"])
                self.catch_up(service)
                self.compare(service, request)
        if stop is None:
            self.play_frames(len(self.frames))
            self.catch_up(service)

    def stop(self, engine: str) -> None:
        self.engines[engine].kill()

    def start(self, engine: str) -> None:
        self.engines[engine].start()

    def play_frames(self, count: int) -> None:
        for _, name, (_, number, payload) in self.frames[self.played : count]:
            engine = self.engines[name]
            is_lost = self.lost_every is not None and engine.next_number % self.lost_every == self.lost_every - 1
            assert engine.publish_payload(payload, is_lost=is_lost) == int.from_bytes(number, "big")
        self.played = max(self.played, count)

    def catch_up(self, service: Client) -> None:
        for name, engine in self.engines.items():
            service.wait_for(pod=name, sequence=engine.next_number - 1 if engine.next_number else None)

    def compare(self, service: Client, request: Request) -> None:
        matched = self._matched_as_text(service, request) if self.as_text else self._matched(service, request)
        self.compared += 1
        if matched != request["cached_tokens"]:
            self.wrong.append((request["kind"], matched, request["cached_tokens"]))

    def _matched(self, service: Client, request: Request) -> int:
        is_lora = request["model"] != "tiny"
        return service.matched(
            request["prompt_ids"],
            pod=request["engine"],
            model="tiny",
            lora_name=request["model"] if is_lora else None,
            cache_salt=request["extra"].get("cache_salt"),
        )

    def _matched_as_text(self, service: Client, request: Request) -> int:
        """The same for the text, as clients of the engine would ask: the adapter's name is the model. Rows without text are asked by their tokens."""
        source = "messages" if request["messages"] else "prompt" if isinstance(request["prompt"], str) else "prompt_ids"
        self.asked_as[source] += 1
        prompt = {"token_ids" if source == "prompt_ids" else source: request[source]}
        # Before its first block an adapter is known to nobody.
        is_known = request["model"] == "tiny" or any(request["model"] in service.stream(pod)["adapters"] for pod in self.engines)
        model = {"model": request["model"]} if is_known else {"model": "tiny", "lora_name": request["model"]}
        self.asked_as["adapter"] += request["model"] != "tiny" and is_known
        answer = service.http.post(f"{service.url}/v1/score", json={**model, **prompt, "cache_salt": request["extra"].get("cache_salt")})
        assert answer.status_code == 200, answer.text
        assert answer.json()["tokens"] == len(request["prompt_ids"])
        (matched,) = (pod["matched_tokens"] for pod in answer.json()["pods"] if pod["pod"] == request["engine"])
        return int(matched)


class Replayed(Player):
    """The same, played by `kv-indexer replay`."""

    def __init__(self, name: str, process: Process) -> None:
        super().__init__(name)
        self.process = process

    def stop(self, engine: str) -> None:
        super().stop(engine)
        self.process.step(f"stop {engine}")

    def start(self, engine: str) -> None:
        super().start(engine)
        self.process.step(f"start {engine}")

    def play_frames(self, count: int) -> None:
        super().play_frames(count)  # nothing listens there; it knows how far each engine is
        self.process.step(str(self.played))


CAPTURES = [("v028_bs16_main", 139, UNKNOWABLE), ("v028_bs16_pods_restart", 96, set())]


@pytest.mark.parametrize("lost_every", [None, 10], ids=["whole", "every tenth frame lost"])
@pytest.mark.parametrize(("name", "rows", "unknowable"), CAPTURES, ids=[name for name, _, _ in CAPTURES])
def test_the_index_says_what_the_engine_said(name: str, rows: int, unknowable: set[str], lost_every: int | None) -> None:
    """Every sequential request is predicted exactly, but for the two that no index can know."""
    player = Player(name, lost_every=lost_every)
    try:
        with Command("serve", *words_of({"port": "0", "silence_s": "0.2"}), *engine_flags(player)) as service:
            service.wait_url()
            wait_until(lambda: service.http.get(f"{service.url}/readyz").status_code == 200)
            player.play(service)
            gaps = sum(service.stream(pod)["gaps"] for pod in player.engines)
    finally:
        player.close()
    assert player.compared == rows
    assert {kind for kind, _, _ in player.wrong} == unknowable, player.wrong
    assert len(player.wrong) == len(unknowable)
    assert (gaps > 0) == (lost_every is not None)


@pytest.mark.parametrize(("name", "rows", "unknowable"), CAPTURES, ids=[name for name, _, _ in CAPTURES])
def test_prompts_chats_and_adapters_as_text_are_predicted_alike(name: str, rows: int, unknowable: set[str]) -> None:
    """The engine's /tokenize says what the captured one said; nothing but where the tokens come from is different."""
    player = Player(name, as_text=True)
    try:
        with player.api, Command("serve", *words_of({"port": "0", "silence_s": "0.2"}), *engine_flags(player)) as service:
            service.wait_url()
            wait_until(lambda: service.http.get(f"{service.url}/readyz").status_code == 200)
            player.play(service)
            asked = service.metric("kv_indexer_tokenize_requests_total", outcome="tokens")
            assert asked == service.metric("kv_indexer_tokenize_requests_total") > 0
    finally:
        player.close()
    assert player.compared == rows
    assert {kind for kind, _, _ in player.wrong} == unknowable, player.wrong
    assert len(player.wrong) == len(unknowable)
    assert player.asked_as["prompt"] > 50
    if name == "v028_bs16_main":
        assert min(player.asked_as["messages"], player.asked_as["adapter"]) > 0


@pytest.mark.parametrize(("name", "rows", "unknowable"), CAPTURES, ids=[name for name, _, _ in CAPTURES])
def test_the_index_says_what_the_engine_said_when_the_recording_is_replayed(name: str, rows: int, unknowable: set[str]) -> None:
    """`kv-indexer replay` is to the service what the engine was."""
    with Process("replay", DATA / f"{name}.frames.msgpack", "--steps") as process:
        player = Replayed(name, process)
        specs = [word for _ in player.engines for word in ("--engine", process.line())]
        try:
            with Command("serve", *words_of({"port": "0", "silence_s": "0.2"}), *specs) as service:
                service.wait_url()
                wait_until(lambda: service.http.get(f"{service.url}/readyz").status_code == 200)
                player.play(service)
        finally:
            player.close()
    assert player.compared == rows
    assert {kind for kind, _, _ in player.wrong} == unknowable, player.wrong
    assert len(player.wrong) == len(unknowable)


@pytest.mark.parametrize("start", [40, 100])
def test_a_late_service_knows_all_that_the_history_holds(start: int) -> None:
    """A service started in the middle asks for the history and then predicts like one that was there from the start."""
    player = Player("v028_bs16_main")
    late_requests = [row for row in player.requests if row.get("frames_before", 0) >= start]
    try:
        player.play_frames(start)
        with Command("serve", "--port", "0", *engine_flags(player)) as service:
            service.wait_url()
            player.requests = late_requests
            player.play(service)
            assert service.stream("A")["replayed"] >= start
    finally:
        player.close()
    assert player.compared > 30
    assert {kind for kind, _, _ in player.wrong} <= UNKNOWABLE
    assert len(player.wrong) <= len(UNKNOWABLE)


def engine_flags(player: Player) -> list[str]:
    return [word for spec in player.specs() for word in ("--engine", spec)]
