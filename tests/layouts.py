"""What a release leaves in Redis, in data/layouts/RELEASE.msgpack. It was recorded from the release's own processes, killed when all was written.

    python -m tests.layouts RELEASE FOLDER    # FOLDER has the sources of that release, e.g. from `git archive`

A recording has the time by Redis, the payloads of each pod, and the keys: [name, milliseconds to live or -1, what DUMP says]. It is made with
Redis 6.2, so that every later Redis and Valkey restores it.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import redis

from tests.engine import Engine, removed, stored
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.waiting import wait_until

DATA = Path(__file__).parent / "data" / "layouts"
NAMESPACE = "kvi"
MODEL = "org/model"
# Of pod a: three blocks, of which the last is removed and the second lies in the cpu's memory too.
BLOCKS_A = tuple(range(1, 13))
# Of pod b: two, which no block of pod a is like.
BLOCKS_B = tuple(range(101, 109))
# Nothing listens there: the pod was registered over HTTP and never came.
REGISTERED = {"model": MODEL, "events": "tcp://127.0.0.1:9"}
# No score but a time in milliseconds is so large.
TIME_MIN = 10**12


class Recording(msgspec.Struct, frozen=True):
    at_ms: int
    payloads: dict[str, list[bytes]]
    keys: list[tuple[bytes, int, bytes]]


def read(release: str) -> Recording:
    return msgspec.msgpack.decode((DATA / f"{release}.msgpack").read_bytes(), type=Recording)


def restore(client: "redis.Redis[bytes]", recording: Recording) -> None:
    """Put it all back as if the release had been killed just now: times are moved by what has passed since."""
    passed_ms = _now_ms(client) - recording.at_ms
    for key, lives_ms, value in recording.keys:
        client.restore(key, max(lives_ms, 0), value)
        if client.type(key) == b"zset":
            times = {member: score + passed_ms for member, score in client.zrange(key, 0, -1, withscores=True) if score > TIME_MIN}
            if times:
                client.zadd(key, times)


def dumped(client: "redis.Redis[bytes]", prefix: str) -> dict[bytes, bytes | None]:
    """What lies under this prefix, to compare."""
    return {key: client.dump(key) for key in client.scan_iter(f"{prefix}*")}


def _now_ms(client: "redis.Redis[bytes]") -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def go_on(engine: Engine, payloads: Sequence[bytes]) -> None:
    """Make it the engine that published these before."""
    for payload in payloads:
        engine.publish_payload(payload, is_lost=True)


def publish(a: Engine, b: Engine) -> None:
    """What both pods announce."""
    a.publish(stored([1, 2, 3], BLOCKS_A))
    a.publish(stored([2], [], block_size=0, medium="CPU", extra_keys=None), removed([3]))
    b.publish(stored([31, 32], BLOCKS_B))


def record(folder: Path) -> Recording:
    """Run the release in this folder until all that the engines announced is in Redis."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        client = server.client()
        a, b = (stack.enter_context(Engine()) for _ in range(2))
        common = ["--redis", server.url, "--namespace", NAMESPACE]
        engines = [word for name, engine in (("a", a), ("b", b)) for word in ("--engine", engine.spec(name, MODEL))]
        with _command(folder, "ingest", *common, *engines) as indexer, _command(folder, "api", *common) as scorer:
            publish(a, b)
            httpx.put(f"{indexer}/v1/pods/c", json=REGISTERED).raise_for_status()
            wait_until(lambda: _matches(scorer, BLOCKS_A).get("a") == 8 and _matches(scorer, BLOCKS_B).get("b") == 8, 60, "both pods to be indexed")
            wait_until(lambda: any(key.endswith(b":pods") for key in client.scan_iter(f"{NAMESPACE}:*")), 60, "the registration to be in Redis")
        at_ms = _now_ms(client)
        keys = [(key, client.pttl(key), client.dump(key) or b"") for key in sorted(client.scan_iter(f"{NAMESPACE}:*"))]
        return Recording(at_ms, {name: [payload for _, payload in engine.history] for name, engine in (("a", a), ("b", b))}, keys)


def _matches(url: str, tokens: Sequence[int]) -> dict[str, int]:
    answer: dict[str, Any] = httpx.post(f"{url}/v1/score", json={"model": MODEL, "token_ids": [*tokens, 0]}).json()
    return {pod["pod"]: pod["matched_tokens"] for pod in answer.get("pods", [])}


@contextmanager
def _command(folder: Path, *words: str) -> Iterator[str]:
    """A role of the release in this folder, killed at the end. Its URL."""
    port = free_port()
    words = (*words, "--port", str(port))
    with subprocess.Popen([sys.executable, "-m", "scorer_api.cli", *words], cwd=folder) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: _is_up(url), 60, f"{words[0]} of {folder} to listen")
            yield url
        finally:
            process.kill()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def main(words: Sequence[str]) -> None:
    release, folder = words
    (DATA / f"{release}.msgpack").write_bytes(msgspec.msgpack.encode(record(Path(folder))))


if __name__ == "__main__":
    main(sys.argv[1:])
