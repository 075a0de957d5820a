"""The receive loop waits for nothing: not for applying, not for a replay, not for a request."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from indexer.receiving.inbox import Inbox
from tests.engine import Engine, stored
from tests.proxy import Proxy
from tests.running import Running
from tests.waiting import wait_until

mechanism = pytest.mark.mechanism


def block(number: int) -> dict[str, object]:
    return stored([number + 1], [number, 1, 2, 3])


def prompt(number: int) -> list[int]:
    return [number, 1, 2, 3, 9]


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The payloads that the receiving thread has taken so far."""
    payloads: list[bytes] = []
    put_all = Inbox.put_all

    def put_and_note(self: Inbox, messages: list[list[bytes]]) -> None:
        put_all(self, messages)
        payloads.extend(frames[-1] for frames in messages)

    monkeypatch.setattr(Inbox, "put_all", put_and_note)
    return payloads


@contextmanager
def event_loop_held_up(service: Running) -> Iterator[None]:
    """Replays, applying and requests all stand still meanwhile."""
    release = threading.Event()
    held = threading.Event()

    def hold() -> None:
        held.set()
        release.wait(60)

    service.loop.call_soon_threadsafe(hold)
    assert held.wait(30)
    try:
        yield
    finally:
        release.set()


@mechanism("receiving_waits")
def test_nothing_is_lost_while_applying_is_held_up_even_over_a_reconnect(received: list[bytes]) -> None:
    """The connection is cut and comes back meanwhile; without a replay endpoint a lost batch could not be had again."""
    with (
        Engine(with_replay=False) as engine,
        Proxy(engine.events_port) as proxy,
        Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{proxy.port}") as service,
    ):
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(block(0))
        service.wait_for(sequence=0)
        with event_loop_held_up(service):
            for number in range(1, 2000):
                engine.publish(block(number))
            wait_until(lambda: len(received) == 2000)
            proxy.cut()
            wait_until(lambda: engine.subscriptions() > 1)
            for number in range(2000, 4000):
                engine.publish(block(number))
        status = service.wait_for(sequence=3999)
        assert (status["gaps"], status["batches"], status["blocks"]) == (0, 4000, {"gpu": 4000})


@mechanism("no_room")
def test_nothing_is_lost_while_a_replay_is_not_answered() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        engine.mute = True
        engine.publish(block(0), is_lost=True)
        for number in range(1, 3000):
            engine.publish(block(number))
        wait_until(lambda: engine.asked.count(0) > 1)
        engine.history = engine.history[:1]  # the replay has the lost batch only; all others must have been kept
        engine.mute = False
        status = service.wait_for(sequence=2999, trust="live")
        assert (status["gaps"], status["replayed"], status["batches"]) == (1, 1, 3000)


@mechanism("no_replay_of_gaps")
def test_past_the_limits_the_loss_is_noticed_as_a_gap_and_repaired(received: list[bytes]) -> None:
    with Engine() as engine, Running(engine.spec(), inbox_frames_max="100") as service:
        service.wait_for(trust="live")
        with event_loop_held_up(service):
            for number in range(1000):
                engine.publish(block(number))
            wait_until(lambda: len(received) == 1000)
        status = service.wait_for(sequence=999, trust="live")
        assert status["gaps"] > 0
        assert status["blocks"] == {"gpu": 1000}
        assert service.metric("kv_indexer_inbox_dropped_frames_total") > 0
        assert [service.matched(prompt(number)) for number in (0, 500, 999)] == [4, 4, 4]


def test_a_flood_from_one_pod_leaves_another_its_turn() -> None:
    with Engine() as flooding, Engine() as calm, Running(flooding.spec("a"), calm.spec("b")) as service:
        service.wait_for(pod="a", trust="live")
        service.wait_for(pod="b", trust="live")
        for number in range(20_000):
            flooding.publish(block(number))
        calm.publish(block(7))
        service.wait_for(pod="b", sequence=0)
        assert service.matched(prompt(7), pod="b") == 4
        service.wait_for(pod="a", sequence=19_999)
