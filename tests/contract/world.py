"""Every role as a process, behind a fixed scenario: what two engines announce, batch by batch, and which pods are registered over HTTP."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec

from tests.engine import Engine, cleared, removed, stored
from tests.engine_server import EngineServer, Reply, Request
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer
from tests.running import Client, Command
from tests.waiting import wait_until

ROLES = ("serve", "serve-redis", "ingest", "api")
WITH_INDEXER = ROLES[:3]
MODEL = "org/model"
OTHER_MODEL = "org/other"
ADAPTER = "adapter"
API_TOKEN, ADMIN_TOKEN = "t" * 32, "a" * 32
# Nothing listens there.
NOWHERE = "http://127.0.0.1:9"
REFUSED = "a prompt that the engine refuses"
DIGEST = bytes(range(32))
# Every payload has the same time stamp, so that fingerprints of batches are the same each time.
SENT_AT_S = 1_700_000_000.0
# Four times what a busy machine takes.
TIMEOUT_S = 60.0
# However slow the machine is, no connection and no lease is given up, and no replay: that would be another scenario.
PATIENT = {"heartbeat_timeout_s": "60", "lease_s": "60", "replay_idle_s": "30", "redis_timeout_s": "30"}
# Nothing that is known expires while the test runs.
SCORING = {"load_max_age_s": "600", "route_forget_s": "600", "route_speculative_s": "600", "route_seed": "1", "body_bytes_max": "65536", **PATIENT}
METRICS = "\n".join(
    f"# TYPE {name} gauge\n{name}{{{labels}}} {value}"
    for name, labels, value in (
        ("vllm:num_requests_running", 'engine="0"', 3),
        ("vllm:num_requests_waiting", 'engine="0"', 1),
        ("vllm:kv_cache_usage_perc", 'engine="0"', 0.25),
        ("vllm:cache_config_info", 'block_size="4",num_gpu_blocks="1000",engine="0"', 1),
    )
)

Batch = list[dict[str, Any]]
BATCHES: dict[str, list[Batch]] = {
    "a": [
        [stored([1, 2, 3], range(1, 13))],
        # A placeholder without tokens: the block lies in the cpu's memory too.
        [stored([2], [], block_size=0, medium="CPU", extra_keys=None)],
        # One block of 8 tokens on disk covers two of the gpu's.
        [stored([2], [], block_size=8, medium="DISK", extra_keys=None)],
        [removed([3])],
        # An orphan: nobody announced its parent.
        [stored([11], range(41, 45), 10)],
        # A second copy, then two events in one batch.
        [stored([1], range(1, 5))],
        [stored([21, 22], range(101, 109)), removed([21])],
        [stored([DIGEST], range(201, 205), lora_id=1, lora_name=ADAPTER, extra_keys=[[ADAPTER]])],
        [{"type": "NobodyKnowsThis"}],
    ],
    "b": [
        [stored([31, 32], range(1, 9))],
        [cleared()],
        [stored([35], range(1, 5))],
    ],
}


def tokenize(server: EngineServer, request: Request) -> Reply:
    """The server's own tokens, but one prompt is refused."""
    return (400, b'{"message": "not this one"}') if request.get("prompt") == REFUSED else server.tokenize(request)


class World(NamedTuple):
    """`roles`: by name. `names`: what changes from run to run → what stands for it in snapshots. `registrations`: answers to them, by role."""

    roles: dict[str, Client]
    redis: RedisServer
    names: dict[str, str]
    registrations: dict[str, list[httpx.Response]]


@contextmanager
def scenario(folder: Path) -> Iterator[World]:
    """When it begins everybody knows everything. `serve-redis` follows the same engines for itself, and wants tokens."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        engines = {name: stack.enter_context(Engine(with_replay=name != "e")) for name in ("a", "b", "c", "e")}
        http = stack.enter_context(EngineServer(model=MODEL, metrics=METRICS))
        http.routes["/tokenize"] = partial(tokenize, http)
        specs = (
            engines["a"].spec("a", MODEL, http=http.url),
            engines["b"].spec("b", MODEL, counting="set", http=NOWHERE),
            engines["e"].spec("e", OTHER_MODEL, rank=1, http=http.url),
        )
        tokens = {flag: token_file(folder / flag, token) for flag, token in (("api_token_file", API_TOKEN), ("admin_token_file", ADMIN_TOKEN))}
        more = {"engine_hashes": "true", **PATIENT}
        commands = {
            "serve": serve(None, *specs, **more | SCORING),
            "serve-redis": serve(redis.url, *specs, namespace="other", allowed_engine_networks="127.0.0.0/8,ipc", **tokens, **SCORING),
            "ingest": ingest(redis.url, *specs, **more),
            "api": api(redis.url, **more | SCORING),
        }
        started = [stack.enter_context(command) for command in commands.values()]
        stack.callback(stop_all, started)
        for command in started:
            command.wait_url()
        commands["serve-redis"].http.headers["Authorization"] = f"Bearer {API_TOKEN}"
        roles: dict[str, Client] = dict(commands)
        registrations = {role: register(roles[role], engines["c"]) for role in ("serve", "ingest")}
        publish_all(engines, roles, redis)
        names = {f"127.0.0.1:{engine.events_port}": f"{name}:EVENTS" for name, engine in engines.items()}
        names |= {f"127.0.0.1:{engine.replay_port}": f"{name}:REPLAY" for name, engine in engines.items() if engine.with_replay}
        names |= {f"127.0.0.1:{http.port}": "HTTP"}
        yield World(roles, redis, names, registrations)


def token_file(path: Path, token: str) -> str:
    path.write_text(token + "\n", encoding="utf-8")
    path.chmod(0o600)
    return str(path)


def stop_all(commands: list[Command]) -> None:
    """All at once, which takes less time than one after the other."""
    for command in commands:
        command.process.terminate()
    for command in commands:
        command.process.wait(30)


def register(client: Client, engine: Engine) -> list[httpx.Response]:
    """Pod c stays, pod d is forgotten again."""
    spec: dict[str, Any] = dict(word.split("=", 1) for word in engine.spec("c", MODEL).split(","))
    without_pod = {key: value for key, value in spec.items() if key != "pod"}
    with_more = {**without_pod, "http": f"{NOWHERE}/base", "offload_block_size": 8}
    url = f"{client.url}/v1/pods"
    put, delete = client.http.put, client.http.delete
    answers = [put(f"{url}/c", json=spec), put(f"{url}/c", json=with_more)]
    answers += [put(f"{url}/d", json=without_pod), delete(f"{url}/d"), delete(f"{url}/d")]
    answers += [put(f"{url}/c", json={**spec, "pod": "other"}), put(f"{url}/c", json={"model": MODEL}), put(f"{url}/c", json={**spec, "surplus": 1})]
    answers += [put(f"{url}/c", json={**spec, "events": "tcp://8.8.8.8:5557"}), put(f"{url}/c", json=[]), put(f"{url}/c", content=b"{}")]
    return answers


def publish_all(engines: dict[str, Engine], roles: dict[str, Client], redis: RedisServer) -> None:
    """One batch after the other, each when the one before it is in Redis: else several become one change."""
    client = redis.client()
    for role in ROLES:
        wait_known(roles, role, dict.fromkeys("abe" if role == "serve-redis" else "abce"))
    for name, count in (("a", 3), ("b", 3), ("e", 3), ("c", 2)):
        wait_until(lambda name=name, count=count: engines[name].subscriptions() >= count, TIMEOUT_S, f"subscriptions to {name}")
    for pod, batches in BATCHES.items():
        for events in batches:
            number = engines[pod].publish_payload(msgspec.msgpack.encode([SENT_AT_S, events, 0]))
            wait_until(lambda pod=pod, number=number: sequence_in_redis(client, pod) == number, TIMEOUT_S, f"batch {number} of {pod} in Redis")
    for role in ROLES:
        wait_known(roles, role, {pod: len(batches) - 1 for pod, batches in BATCHES.items()})


def wait_known(roles: dict[str, Client], role: str, sequences: dict[str, int | None]) -> None:
    """Wait until these are the numbers of the pods' last batches. Then they are live, but for the one that cannot be asked for what was missed."""
    client = roles[role]

    def is_known() -> bool:
        pods = client.http.get(f"{client.url}/v1/pods").json()["pods"]
        known = {pod["pod"]: (stream["sequence"], stream["trust"]) for pod in pods for stream in pod["streams"]}
        return all(known.get(pod) == (number, "partial" if pod == "e" else "live") for pod, number in sequences.items())

    wait_until(is_known, TIMEOUT_S, f"{sequences} in {role}")


def sequence_in_redis(client: Any, pod: str) -> int | None:
    """The number of the last batch that the pod's state in Redis has."""
    (key,) = client.keys(f"kvi:*:state:0:{pod}")
    head = client.hget(key, "head")
    return None if head is None else msgspec.msgpack.decode(head)[0]
