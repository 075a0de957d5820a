"""A Redis, fleets of engines, and the service's processes: started by a test, stopped in order after it, and checked for what they left behind."""

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from tests import processes
from tests.fleet import Fleet
from tests.redis_server import RedisServer
from tests.running import Client, Command
from tests.waiting import wait_until

log = logging.getLogger(__name__)

NAMESPACE = "kvi"
# How long keys outlive their owner here: long enough for what a test does to it, short enough to wait for the end.
POD_EXPIRY_S = 10.0
LINES_SHOWN = 60
# Between two rounds of questions about all prompts: much less than a wrong answer would last, and a core is left for who answers.
ROUNDS_PAUSE_S = 0.8


class World:
    """Settings given to `indexers`, `scorers` and `sidecar` become flags; `pod_expiry_s` is the same for all processes of a world."""

    def __init__(self, pod_expiry_s: float = POD_EXPIRY_S, *, make_redis: Callable[..., Any] = RedisServer, **redis_options: str) -> None:
        """`make_redis`: RedisServer, or what is like it."""
        self.pod_expiry_s = pod_expiry_s
        self.redis = make_redis(**redis_options)
        self.started: list[Command] = []
        self._processes = ExitStack()
        self._fleets = ExitStack()

    def __enter__(self) -> Self:
        self.redis.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with ExitStack() as stack:
            stack.push(self.redis)
            stack.callback(self._fleets.close)
            self.stop_processes()

    def stop_processes(self) -> None:
        """All of them, in order. Idempotent."""
        self._processes.close()

    def show_lines(self) -> None:
        """Log what the processes said, for whoever reads of a failure."""
        for number, command in enumerate(self.started):
            said = "\n".join(command.lines[-LINES_SHOWN:])
            log.warning("process %s, kv-indexer %s, exit code %s:\n%s", number, command.words[0], command.process.poll(), said)
        log.warning("redis:\n%s", "\n".join(self.redis.log().splitlines()[-15:]))

    # Starting

    def fleet(self, seed: int = 1, streams: int = 4, **options: Any) -> Fleet:
        return self._fleets.enter_context(Fleet(seed, streams, **options))

    def indexers(self, count: int, *fleets: Fleet, url: str | None = None, namespace: str = NAMESPACE, **settings: str) -> list[Command]:
        """So many indexers that follow the same engines."""
        specs = [spec for fleet in fleets for spec in fleet.specs]
        return self.start(processes.ingest(url or self.redis.url, *specs, namespace=namespace, **self._with_expiry(settings)) for _ in range(count))

    def scorers(self, count: int, *, url: str | None = None, namespace: str = NAMESPACE, **settings: str) -> list[Command]:
        return self.start(processes.api(url or self.redis.url, namespace=namespace, **self._with_expiry(settings)) for _ in range(count))

    def sharing_indexers(self, *fleets: Fleet, **settings: str) -> list[Command]:
        """Two indexers that share the streams evenly: the second came when the first had them all."""
        streams = sum(len(fleet.publishers) for fleet in fleets)
        (first,) = self.indexers(1, *fleets, **settings)
        wait_until(lambda: len(owners(first)) == streams)
        (second,) = self.indexers(1, *fleets, **settings)

        def is_even() -> bool:
            theirs, ours = len(owners(first)), len(owners(second))
            return theirs + ours == streams and abs(theirs - ours) <= 1

        wait_until(is_even, what="both to own an even share of the streams")
        return [first, second]

    def sidecars(self, count: int, *fleets: Fleet, namespace: str = NAMESPACE, **settings: str) -> list[Command]:
        """Indexer and scorer in one process."""
        specs = [spec for fleet in fleets for spec in fleet.specs]
        return self.start(processes.serve(self.redis.url, *specs, namespace=namespace, **self._with_expiry(settings)) for _ in range(count))

    def launch_scorer(self, **settings: str) -> Command:
        """A scorer that is only just starting."""
        command = self._processes.enter_context(processes.api(self.redis.url, namespace=NAMESPACE, **self._with_expiry(settings)))
        self.started.append(command)
        return command

    def start(self, commands: Iterable[Command]) -> list[Command]:
        """Start these at once, and wait until each listens."""
        entered = [self._processes.enter_context(command) for command in commands]
        self.started += entered
        for command in entered:
            command.wait_url()
        return entered

    def _with_expiry(self, settings: dict[str, str]) -> dict[str, str]:
        return {"pod_expiry_s": str(self.pod_expiry_s), **settings}


def owners(client: Client) -> dict[tuple[str, int], str | None]:
    """Who owns each stream, as this process sees it."""
    pods = client.http.get(f"{client.url}/v1/pods").json()["pods"]
    return {(pod["pod"], stream["rank"]): stream["owner"] for pod in pods for stream in pod["streams"]}


def wait_owned(client: Client, streams: int, by: int, timeout_s: float = 20.0) -> dict[tuple[str, int], str | None]:
    """Wait until so many streams are owned, all together by so many indexers. Returns who owns what."""
    seen: dict[tuple[str, int], str | None] = {}

    def is_owned() -> bool:
        seen.clear()
        seen.update(owners(client))
        return len(seen) == streams and None not in seen.values() and len(set(seen.values())) == by

    wait_until(is_owned, timeout_s, lambda: f"{streams} streams owned by {by}; they are owned so: {seen}")
    return seen


def readiness(client: Client) -> tuple[int, str, list[str]]:
    """The status code of /readyz, its word and its reasons."""
    response = client.http.get(f"{client.url}/readyz")
    body = response.json()
    return response.status_code, body["status"], body["reasons"]


def wait_ready(*clients: Client, timeout_s: float = 40.0) -> None:
    """Wait until each says so, with nothing to complain of."""
    for client in clients:
        wait_until(lambda client=client: readiness(client)[:2] == (200, "ready"), timeout_s, "a process to be ready")


def age_s(client: Client, fleet: Fleet) -> float:
    """How old the newest word of an owner is, by an answer of this scorer."""
    view = client.score(fleet.texts[0].tokens, fleet.model)["view"]
    assert view["source"] == "redis"
    return float(view["age_s"])


class Explained:
    """Asks scorers while events flow: `with Explained(fleet, *scorers): …` in the background, or `once` by itself.

    A figure that is said to be live must be that of a state within `window_s` before the question.
    """

    def __init__(self, fleet: Fleet, window_s: float) -> None:
        self.fleet = fleet
        self.window_s = window_s
        self.wrong: list[str] = []
        self.live = 0
        self.asked = 0
        self.slowest_s = 0.0

    def once(self, *scorers: Client) -> bool:
        """Ask each about every prompt. Returns whether all was explained."""
        before = len(self.wrong)
        for prompt in self.fleet.texts:
            for number, scorer in enumerate(scorers):
                asked = self.fleet.ask(scorer, prompt)
                self.asked += 1
                self.slowest_s = max(self.slowest_s, asked.stop_s - asked.start_s)
                self.live += any(pod["trust"] == "live" for pod in asked.answer["pods"])
                self.wrong += [f"scorer {number}: {wrong}" for wrong in self.fleet.unexplained(asked, self.window_s)]
        return len(self.wrong) == before

    def during(self, seconds: float, *scorers: Client) -> None:
        """Ask again and again for so long."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.once(*scorers)
            time.sleep(ROUNDS_PAUSE_S)
