"""`serve` with workers and without --redis: they share a redis-server that the service starts, and starts again."""

import os
import re
import signal
from pathlib import Path

from tests.command import environment
from tests.command import run as run_command
from tests.engine import Engine, stored
from tests.redis_server import find_server
from tests.running import Command
from tests.scenarios.redis.test_workers import by_worker, pids
from tests.scenarios.redis.world import wait_ready
from tests.waiting import wait_until

PODS = ("a", "b")


def path_with_redis(folder: Path) -> str:
    """A PATH with the tests' redis-server."""
    (folder / "redis-server").symlink_to(find_server())
    return f"{folder}:{os.environ['PATH']}"


def pid_of_redis(service: Command) -> int:
    """Of the one that was started last."""
    return [int(found[1]) for line in list(service.lines) if (found := re.search(r"own redis-server started pid=(\d+)", line))][-1]


def has_ended(pid: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def test_workers_share_engines_and_a_redis_that_comes_and_goes_with_them(tmp_path: Path) -> None:
    """Both answer for both engines, whoever of them follows these; also for what was published while there was no Redis."""
    words = ("serve", "--port", "0", "--workers", "2", "--lease-s", "3", "--log-level", "info")
    with Engine() as first, Engine() as second:
        specs = [word for pod, engine in zip(PODS, (first, second), strict=True) for word in ("--engine", engine.spec(pod))]
        with Command(*words, *specs, env={"PATH": path_with_redis(tmp_path)}) as service:
            service.wait_url()
            wait_ready(service)
            for number, engine in enumerate((first, second)):
                engine.publish(stored([1], [7, 1, 2, 3]))
                if number:
                    engine.publish(stored([2], [8, 1, 2, 3], 1))
            question = {"model": "m", "token_ids": [7, 1, 2, 3, 8, 1, 2, 3, 9]}
            connections = by_worker(service, question, 2)

            def matched(number: int) -> dict[str, int]:
                return {pod["pod"]: pod["matched_tokens"] for pod in connections[number].post("/v1/score", question)["pods"]}

            for number in connections:
                wait_until(lambda number=number: matched(number) == {"a": 4, "b": 8}, what="both workers to know both engines")

            lost = pid_of_redis(service)
            os.kill(lost, signal.SIGKILL)
            first.publish(stored([2], [8, 1, 2, 3], 1))
            for number in connections:
                wait_until(lambda number=number: matched(number) == {"a": 8, "b": 8}, what="both workers to know what came meanwhile")
            wait_ready(service)
            redis, running = pid_of_redis(service), pids(service)
            assert redis != lost
            for connection in connections.values():
                connection.close()
            service.kill()
            wait_until(lambda: all(map(has_ended, (redis, *running.values()))), what="all processes to end with the first one")


def test_without_a_redis_server_there_is_one_error(tmp_path: Path) -> None:
    code, _, error = run_command("serve", "--port", "0", "--workers", "2", env=environment(PATH=str(tmp_path)))
    expected = "needs a Redis that the workers share: give --redis, or install redis-server or valkey-server"
    assert (code, error) == (2, f"kv-indexer: --workers=2: {expected}\n")
