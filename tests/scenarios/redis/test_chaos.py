"""Everything at once, in a random order that a seed decides: TEST_CHAOS_SEED, and the log of a failed run shows what was done.

`make test-chaos` goes on for five minutes.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from random import Random

import httpx
import pytest

from tests.fleet import Fleet
from tests.running import Command
from tests.scenarios.redis.world import World, readiness, wait_ready
from tests.waiting import wait_until

log = logging.getLogger(__name__)

SEED = int(os.environ.get("TEST_CHAOS_SEED", "1"))
# A live answer may lack the changes of the last second, or four of them on a small machine.
LIVE_S = 4.0
# Longer than a lease, and much shorter than anything expires.
FROZEN_S = (3.5, 6.0)
AWAY_S = (0.2, 3.0)
POD_EXPIRY_S = 24.0
SETTLED_S = 60.0


class Questions:
    """Asks the scorers that are ready, on and on, and keeps what no state of the last moments explains."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.scorers: list[Command] = []
        self.wrong: list[str] = []
        self.asked = self.live = 0
        self._fleet = fleet
        self._random = Random(seed)
        self._stopping = threading.Event()
        self._changing = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="questions", daemon=True)

    def __enter__(self) -> "Questions":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)

    def admit(self, scorer: Command) -> None:
        """Ask it from now on: a router asks a scorer once it is ready."""
        with self._changing:
            self.scorers.append(scorer)

    def dismiss(self, scorer: Command) -> None:
        """When it returns nobody asks it any more."""
        with self._changing:
            self.scorers.remove(scorer)

    def check(self) -> None:
        """Raises what went wrong so far."""
        if self._failure is not None:
            raise self._failure
        assert self.wrong == [], f"{len(self.wrong)} of {self.asked} answers:\n" + "\n".join(self.wrong[:20])

    def _run(self) -> None:
        try:
            while not self._stopping.wait(0.01):
                with self._changing:
                    if self.scorers:
                        self._ask(self._random.choice(self.scorers))
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self._failure = error

    def _ask(self, scorer: Command) -> None:
        asked = self._fleet.ask(scorer, self._random.choice(self._fleet.texts))
        self.asked += 1
        self.live += any(pod["trust"] == "live" for pod in asked.answer["pods"])
        self.wrong += self._fleet.unexplained(asked, LIVE_S)


class Chaos:
    """The faults. Each leaves the world as it was: so many indexers and scorers, all engines, and Redis."""

    def __init__(self, world: World, fleet: Fleet, questions: Questions, seed: int) -> None:
        self.world = world
        self.fleet = fleet
        self.questions = questions
        self.random = Random(seed)
        self.indexers = world.indexers(2, fleet)
        self.scorers = world.scorers(2)
        self.done: list[str] = []
        self._late: list[Command] = []

    def run(self, seconds: float) -> None:
        faults: list[Callable[[], None]] = [
            self.an_indexer_is_killed,
            self.an_indexer_is_frozen,
            self.an_engine_restarts,
            self.an_engine_is_cut_off,
            self.redis_restarts_with_its_data,
            self.redis_is_emptied,
            self.redis_is_frozen,
            self.a_scorer_is_restarted,
        ]
        started_s = time.monotonic()
        order: list[Callable[[], None]] = []
        while time.monotonic() < started_s + seconds:
            # Each once in every round: a short run has seen them all.
            order = order or self.random.sample(faults, len(faults))
            fault = order.pop()
            self.done.append(fault.__name__)
            log.info("%.1f s: %s", time.monotonic() - started_s, fault.__name__)
            fault()
            self._admit_late()
            self.questions.check()
            self._wait(self.random.choice([0.0, 0.5, 2.0]))
        wait_until(lambda: self._admit_late() or not self._late, SETTLED_S, "every scorer to be ready")

    def an_indexer_is_killed(self) -> None:
        which = self.random.randrange(len(self.indexers))
        self.indexers[which].kill()
        self._wait(self.random.uniform(*AWAY_S))
        (self.indexers[which],) = self.world.indexers(1, self.fleet)

    def an_indexer_is_frozen(self) -> None:
        indexer = self.random.choice(self.indexers)
        indexer.freeze()
        self._wait(self.random.uniform(*FROZEN_S))
        indexer.thaw()

    def an_engine_restarts(self) -> None:
        pod = self.random.choice(self.fleet.pods)
        self.fleet.kill(pod)
        self._wait(self.random.choice([0.0, 1.0]))
        self.fleet.restart(pod)

    def an_engine_is_cut_off(self) -> None:
        self.fleet.cut(self.random.choice(self.fleet.pods))

    def redis_restarts_with_its_data(self) -> None:
        self.world.redis.kill()
        self._wait(self.random.uniform(*AWAY_S))
        self.world.redis.start()

    def redis_is_emptied(self) -> None:
        self.world.redis.kill()
        self._wait(self.random.uniform(*AWAY_S))
        self.world.redis.start(with_data=False)

    def redis_is_frozen(self) -> None:
        self.world.redis.freeze()
        self._wait(self.random.uniform(*FROZEN_S))
        self.world.redis.thaw()

    def a_scorer_is_restarted(self) -> None:
        which = self.random.randrange(len(self.scorers))
        scorer = self.scorers[which]
        if scorer in self.questions.scorers:
            self.questions.dismiss(scorer)
        if scorer in self._late:
            self._late.remove(scorer)
        scorer.kill()
        (self.scorers[which],) = self.world.scorers(1)
        self._late.append(self.scorers[which])

    def _admit_late(self) -> None:
        for scorer in list(self._late):
            if readiness(scorer)[0] == 200:
                self._late.remove(scorer)
                self.questions.admit(scorer)

    @staticmethod
    def _wait(seconds: float) -> None:
        time.sleep(seconds)


def survive(world: World, seconds: float) -> None:
    """Faults for so long, with events and queries flowing; then everybody says the same, which is right."""
    fleet = world.fleet(seed=SEED, streams=6, rate=50, with_proxies=True)
    with Questions(fleet, SEED) as questions:
        chaos = Chaos(world, fleet, questions, SEED)
        wait_ready(*chaos.indexers, *chaos.scorers)
        fleet.settle(*chaos.scorers)
        for scorer in chaos.scorers:
            questions.admit(scorer)
        fleet.resume()
        chaos.run(seconds)
        log.info("%s questions, %s with a live answer, %s batches", questions.asked, questions.live, fleet.batches)
        fleet.settle(*chaos.scorers, timeout_s=SETTLED_S)
        questions.check()
    assert questions.live > questions.asked / 20
    # What was applied twice, or not at all, shows as the copies of each block go one by one.
    fleet.thin()
    fleet.settle(*chaos.scorers)
    fleet.drain()
    fleet.settle(*chaos.scorers)
    assert all(process.is_running for process in (*chaos.indexers, *chaos.scorers))


@pytest.mark.timeout(300)
def test_half_a_minute_of_chaos(make_world: Callable[..., World]) -> None:
    """At the end every scorer equals the reference; on the way no answer marked live lacks more than the changes of the last second."""
    survive(make_world(pod_expiry_s=POD_EXPIRY_S, appendonly="yes"), 30)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_five_minutes_of_chaos(make_world: Callable[..., World]) -> None:
    """The same, ten times as long."""
    survive(make_world(pod_expiry_s=POD_EXPIRY_S, appendonly="yes"), 300)


def test_a_scorer_that_is_asked_at_the_wrong_time_answers_all_the_same(world: World) -> None:
    """Before it is ready it says that it knows no model, and it never breaks the connection."""
    fleet = world.fleet(streams=1)
    world.indexers(1, fleet)
    fleet.play(20)
    scorer = world.launch_scorer()
    scorer.wait_url()
    codes = set()

    def is_ready() -> bool:
        codes.add(httpx.post(f"{scorer.url}/v1/score", json={"model": "m", "token_ids": [1]}).status_code)
        return readiness(scorer)[0] == 200

    wait_until(is_ready)
    assert codes <= {200, 404}
    fleet.settle(scorer)
