"""deploy/caddy/Caddyfile: the real load balancer in front of real scorers, one of which dies, comes back, or is not ready."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest

from tests.deploy.manifests import DEPLOY, TOOLS
from tests.engine import Engine, stored
from tests.ports import free_port
from tests.running import Client, Command
from tests.waiting import wait_until

CADDYFILE = DEPLOY / "caddy/Caddyfile"
PROMPT = [1, 2, 3, 4, 5]

pytestmark = pytest.mark.deploy


class Balancer(Client):
    """`with Balancer(folder, port, …) as balancer:` in front of the scorers at these ports."""

    def __init__(self, folder: Path, *scorers: int) -> None:
        super().__init__()
        self._folder = folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "BIND": "127.0.0.1",
            "PORT": str(self._port),
            "SCORERS": " ".join(f"127.0.0.1:{port}" for port in scorers),
        }

    def __enter__(self) -> "Balancer":
        words = [str(TOOLS / "caddy"), "run", "--adapter", "caddyfile", "--config", str(CADDYFILE)]
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(words, env=self._environ, cwd=self._folder, stdout=self._log, stderr=self._log)
        wait_until(self._listens, 30)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def _listens(self) -> bool:
        assert self._process.poll() is None, (self._folder / "log").read_text()
        with suppress(httpx.TransportError):
            return self.http.get(f"{self.url}/healthz").status_code > 0
        return False


def scorer(engine: Engine, port: int, *words: str) -> Command:
    return Command("serve", "--port", str(port), "--engine", engine.spec(), *words)


@contextmanager
def asking(balancer: Balancer) -> Iterator[list[float]]:
    """A router that asks all the time. Yields when each answer came; fails, in the end, when one was not what it should be."""
    done, times, wrong = Event(), [], []

    def ask() -> None:
        with httpx.Client(timeout=30) as http:
            while not done.is_set():
                response = http.post(f"{balancer.url}/v1/score", json={"model": "m", "token_ids": PROMPT})
                if response.status_code != 200 or response.json()["pods"][0]["matched_tokens"] != 4:
                    wrong.append(response.text)
                times.append(time.monotonic())

    threads = [Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield times
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert wrong == []


def more(times: list[float], count: int = 50) -> Callable[[], bool]:
    wanted = len(times) + count
    return lambda: len(times) >= wanted


def served(client: Client) -> float:
    return client.metric("kv_indexer_score_requests_total", outcome="match")


def test_no_request_is_lost_when_a_scorer_dies_and_both_serve_when_it_is_back(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    with Engine() as engine, scorer(engine, ports[0]) as one:
        engine.publish(stored([1], [1, 2, 3, 4]))
        one.wait_url().wait_for(sequence=0)
        with scorer(engine, ports[1]) as two, Balancer(tmp_path, *ports) as balancer:
            two.wait_url().wait_for(sequence=0)
            with asking(balancer) as times:
                wait_until(lambda: served(one) > 20 and served(two) > 20, 60)
                two.kill()
                wait_until(more(times), 60)
                with scorer(engine, ports[1]) as again:
                    again.wait_url().wait_for(sequence=0)
                    wait_until(lambda: served(again) > 20, 60)


def test_a_scorer_that_is_not_ready_gets_nothing(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    # Its second engine never comes, so that it stays at 503.
    waiting = ["--engine", f"pod=away,model=m,events=tcp://127.0.0.1:{free_port()}", "--ready-after-s", "600"]
    with Engine() as engine, scorer(engine, ports[0]) as ready, scorer(engine, ports[1], *waiting) as other:
        engine.publish(stored([1], [1, 2, 3, 4]))
        ready.wait_url().wait_for(sequence=0)
        other.wait_url().wait_for(sequence=0)
        assert other.http.get(f"{other.url}/readyz").status_code == 503
        with Balancer(tmp_path, *ports) as balancer:
            # Until it has asked both for the first time it takes them for healthy.
            wait_until(lambda: "status code out of tolerances" in (tmp_path / "log").read_text(), 30)
            before = served(other)
            with asking(balancer) as times:
                wait_until(more(times), 60)
            assert served(other) == before


def test_a_change_of_pods_is_not_sent_twice_and_other_answers_pass_as_they_are(tmp_path: Path) -> None:
    port = free_port()
    with Engine() as engine, scorer(engine, port) as only, Balancer(tmp_path, port) as balancer:
        only.wait_url().wait_for(trust="live")
        registered = balancer.http.put(f"{balancer.url}/v1/pods/new", json={"model": "m", "events": f"tcp://127.0.0.1:{free_port()}"})
        assert registered.status_code == 201
        wrong = balancer.http.post(f"{balancer.url}/v1/score", json={"model": "m", "token_ids": "x"})
        assert (wrong.status_code, wrong.headers["content-type"]) == (422, "application/problem+json")
