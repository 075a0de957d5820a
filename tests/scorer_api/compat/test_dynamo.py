"""`--compat dynamo`: the routes, shapes and codes of Dynamo's stand-alone indexer. `make test-peers` compares them with its own."""

from collections.abc import Iterator
from typing import Any

import pytest

from indexer.core.block_keys import pack_tokens
from scorer_api.compat.local_hashes import local_hashes, seed_of
from tests.engine import Engine, cleared, removed, stored
from tests.running import Running
from tests.waiting import wait_until

TWELVE = list(range(1, 13))
NONE: dict[str, Any] = {"scores": {}, "frequencies": [], "instances": {}}


def all_of(tokens: int) -> dict[str, Any]:
    """The answer where instance 7 has them on the gpu."""
    figures = {"longest_matched": tokens, "gpu": tokens, "dp": {"0": tokens}, "cpu": tokens, "disk": tokens}
    return {"scores": {"7": {"0": tokens}}, "frequencies": [], "instances": {"7": figures}}


def signed(hashes: list[int]) -> list[int]:
    return [each - 2**64 if each >= 2**63 else each for each in hashes]


class Service(Running):
    """A service with --compat dynamo, and no engine at first."""

    def __init__(self, *engines: str, **flags: str) -> None:
        super().__init__(*engines, compat="dynamo", **flags)

    def post(self, path: str, expected: int = 200, **body: Any) -> Any:
        response = self.http.post(f"{self.url}{path}", json=body)
        assert response.status_code == expected, response.text
        return response.json() if response.headers["content-type"] == "application/json" else response.text

    def get(self, path: str) -> Any:
        return self.http.get(f"{self.url}{path}").json()

    def register(self, engine: Engine, instance: int = 7, expected: int = 201, **more: Any) -> Any:
        endpoint = f"tcp://127.0.0.1:{engine.events_port}"
        answer = self.post("/register", expected, **{"instance_id": instance, "endpoint": endpoint, "model_name": "m", "block_size": 4, **more})
        if expected == 201 and engine.is_alive:
            wait_until(engine.subscriptions)  # what it publishes before is lost: it has no replays
        return answer

    def query(self, tokens: list[int] = TWELVE, **more: Any) -> Any:
        return self.post("/query", model_name="m", token_ids=tokens, **more)

    def query_by_hash(self, tokens: list[int] = TWELVE, lora_name: str | None = None, salt: str | None = None) -> Any:
        hashes = local_hashes(pack_tokens(tokens), 4, seed_of(lora_name, salt))
        return self.post("/query_by_hash", model_name="m", block_hashes=signed(hashes))


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as service:
        yield service


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def test_an_instance_comes_and_goes_over_http(service: Service, engine: Engine) -> None:
    assert service.get("/workers") == []
    assert service.post("/query", 404, model_name="m", token_ids=TWELVE) == {"error": "no indexer for model=m routing_group=default"}
    assert service.register(engine) == {"status": "ok"}
    service.wait_for(pod="7", connected=True)
    endpoint = f"tcp://127.0.0.1:{engine.events_port}"
    (worker,) = service.get("/workers")
    assert worker == {
        **{"instance_id": 7, "source": "zmq", "status": "active", "model_name": "m", "routing_group": "default", "block_size": 4},
        **{"endpoints": {"0": endpoint}, "listeners": {"0": {"endpoint": endpoint, "status": "active"}}},
    }
    assert service.query() == NONE
    assert service.post("/unregister", instance_id=7, model_name="m") == {"status": "ok"}
    assert service.get("/workers") == []


def test_answers_follow_the_events(service: Service, engine: Engine) -> None:
    service.register(engine)
    service.wait_for(pod="7", connected=True)
    engine.publish(stored([1, 2, 3], TWELVE))
    service.wait_for(pod="7", sequence=0)
    assert service.query() == service.query_by_hash() == all_of(12), "all whole blocks count, also the prompt's last"
    assert service.query([*TWELVE[:8], 90, 91, 92, 93]) == all_of(8)
    assert service.query(TWELVE[:7]) == service.query_by_hash(TWELVE[:7]) == all_of(4)
    assert service.query([5, 5, 5, 5]) == service.query([]) == service.query_by_hash([5, 5, 5, 5]) == NONE
    engine.publish(removed([3]))
    service.wait_for(pod="7", sequence=1)
    assert service.query() == service.query_by_hash() == all_of(8)
    engine.publish(cleared())
    service.wait_for(pod="7", sequence=2)
    assert service.query() == service.query_by_hash() == NONE


def test_adapters_and_salts_have_hashes_of_their_own(service: Service, engine: Engine) -> None:
    service.register(engine)
    service.wait_for(pod="7", connected=True)
    engine.publish(stored([1], TWELVE[:4]), stored([2, 3], TWELVE[:8], lora_name="ad"), stored([4, 5, 6], TWELVE, extra_keys=[["salt"], None, None]))
    service.wait_for(pod="7", sequence=0)
    assert service.query() == service.query_by_hash() == all_of(4)
    assert service.query(lora_name="ad") == service.query_by_hash(lora_name="ad") == all_of(8)
    assert service.query(cache_salt="salt") == service.query_by_hash(salt="salt") == all_of(12)
    assert service.query(cache_salt="other") == service.query_by_hash(salt="other") == NONE


def test_lower_tiers_and_ranks_are_told_apart(service: Service) -> None:
    with Engine() as first, Engine() as second:
        service.register(first)
        service.register(second, dp_rank=1)
        first.publish(stored([1, 2, 3], TWELVE))
        second.publish(stored([1, 2, 3], TWELVE))
        for tier, hashes in (("CPU", [2]), ("DISK", [3])):
            second.publish(stored(hashes, [], medium=tier), removed(hashes))
        service.wait_for(pod="7", rank=0, sequence=0, trust="live")
        service.wait_for(pod="7", rank=1, sequence=2, trust="live")
        assert (
            service.query()
            == service.query_by_hash()
            == {**all_of(12), "scores": {"7": {"0": 12, "1": 4}}}
            | {"instances": {"7": {"longest_matched": 12, "gpu": 12, "dp": {"0": 12, "1": 4}, "cpu": 12, "disk": 12}}}
        )
        assert service.post("/unregister", instance_id=7, model_name="m", routing_group="default", dp_rank=0) == {"status": "ok"}
        assert service.query() == {
            **{"scores": {"7": {"1": 4}}, "frequencies": []},
            "instances": {"7": {"longest_matched": 12, "gpu": 4, "dp": {"1": 4}, "cpu": 8, "disk": 12}},
        }


def test_routing_groups_share_nothing(service: Service) -> None:
    with Engine() as ours, Engine() as theirs:
        service.register(ours)
        service.register(theirs, instance=8, routing_group="acme")
        theirs.publish(stored([1, 2, 3], TWELVE))
        service.wait_for(pod="8", sequence=0)
        assert service.query() == NONE
        assert service.query(routing_group="acme")["scores"] == {"8": {"0": 12}}
        assert [each["routing_group"] for each in service.get("/workers")] == ["default", "acme"]
        assert [each["instance_id"] for each in service.get("/workers?routing_group=acme")] == [8]
        assert service.get("/workers?model_name=other") == []
        assert service.post("/query", 404, model_name="m", token_ids=[], routing_group="zz") == {"error": "no indexer for model=m routing_group=zz"}


def test_a_dump_announces_what_is_held_parents_first(service: Service, engine: Engine) -> None:
    assert service.get("/dump") == {}
    service.register(engine)
    engine.publish(stored([1, 2], TWELVE[:8]))
    engine.publish(stored([3], TWELVE[8:], 2), stored([2], [], medium="CPU"))
    service.wait_for(pod="7", sequence=1)
    hashes = local_hashes(pack_tokens(TWELVE), 4, seed_of(None, None))
    answer = service.get("/dump")
    assert answer.keys() == {"m:default"}
    assert answer["m:default"]["block_size"] == 4
    events = answer["m:default"]["events"]
    assert [(each["storage_tier"], each["worker_id"], each["residency_domain"], each["event"]["dp_rank"]) for each in events] == [
        *[("device", 7, "worker", 0)] * 3,
        ("host_pinned", 7, "worker", 0),
    ]
    told = [(each["event"]["data"]["stored"]["parent_hash"], each["event"]["data"]["stored"]["blocks"]) for each in events]
    blocks = [[{"block_hash": number, "tokens_hash": local, "mm_extra_info": None}] for number, local in enumerate(hashes, 1)]
    assert told == [(None, blocks[0]), (1, blocks[1]), (2, blocks[2]), (1, blocks[1])]
    assert [each["event"]["event_id"] for each in events] == [0, 1, 2, 3]


def test_pods_that_flags_name_are_instances_too(engine: Engine) -> None:
    with Service(engine.spec("10.0.0.7:8000")) as service:
        engine.publish(stored([1, 2, 3], TWELVE))
        service.wait_for(pod="10.0.0.7:8000", sequence=0)
        (worker,) = service.get("/workers")
        assert service.query()["scores"] == {str(worker["instance_id"]): {"0": 12}}
        assert service.post("/unregister", instance_id=worker["instance_id"], model_name="m") == {"status": "ok"}


def test_what_contradicts_is_refused_as_there(service: Service, engine: Engine) -> None:
    service.register(engine)
    assert service.register(engine, expected=409) == {"error": "instance 7 dp_rank 0 already registered"}
    assert "already registered for another model" in service.register(engine, expected=409, model_name="other", dp_rank=3)["error"]
    assert service.register(engine, 8, 409, block_size=8) == {"error": "block_size mismatch for model m: existing=4, requested=8"}
    assert "tcp://host:port" in service.register(engine, 8, 400, endpoint="nowhere")["error"]
    assert "--allowed-engine-networks" in service.register(engine, 8, 400, endpoint="tcp://192.0.2.1:5557")["error"]
    unregister = {"instance_id": 7, "model_name": "m", "routing_group": "default"}
    assert service.post("/unregister", 404, **{**unregister, "instance_id": 9}) == {"error": "instance 9 not found"}
    assert service.post("/unregister", 404, **unregister, dp_rank=5) == {"error": "instance 7 dp_rank 5 not found"}
    assert "is registered for model=m" in service.post("/unregister", 404, **{**unregister, "model_name": "other"})["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/register", b"{", 400),
        ("/register", b"{}", 422),
        ("/register", b'{"instance_id":"x","endpoint":"tcp://h:1","model_name":"m","block_size":4}', 422),
        ("/register", b'{"instance_id":18446744073709551616,"endpoint":"tcp://h:1","model_name":"m","block_size":4}', 422),
        ("/query", b'{"model_name":"m"}', 422),
        ("/query", b'{"model_name":"m","token_ids":[-1]}', 422),
        ("/query", b'{"model_name":"m","token_ids":[4294967296]}', 422),
        ("/query", b'{"model_name":"m","token_ids":[' + b"1," * 200_000 + b"-1]}", 422),
        ("/query", b'{"model_name":"m","token_ids":[' + b"1," * 4_500_000 + b"1]}", 413),
        ("/query_by_hash", b'{"model_name":"m","block_hashes":[18446744073709551615]}', 422),
        ("/query_by_hash", b'{"model_name":"m","block_hashes":[1],"cache_salt":"s"}', 400),
    ],
)
def test_bodies_that_do_not_fit_have_the_codes_of_there(service: Service, path: str, body: bytes, status: int) -> None:
    response = service.http.post(f"{service.url}{path}", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status, response.text
    assert service.http.post(f"{service.url}{path}", content=body).status_code == 415


def test_a_long_prompt_is_answered(service: Service, engine: Engine) -> None:
    long = [number % 50_000 for number in range(100_000)]
    service.register(engine)
    engine.publish(stored(range(1, 25_001), long))
    service.wait_for(pod="7", sequence=0)
    assert service.query(long) == service.query_by_hash(long) == all_of(100_000)


def test_health_needs_no_token_and_changes_need_that_of_an_admin(tmp_path: Any, engine: Engine) -> None:
    tokens = {name: tmp_path / name for name in ("api", "admin")}
    for name, path in tokens.items():
        path.write_text(f"{name}-{'x' * 32}\n")
    with Service(api_token_file=str(tokens["api"]), admin_token_file=str(tokens["admin"])) as service:
        assert service.http.get(f"{service.url}/health").content == b""
        assert service.http.get(f"{service.url}/workers").status_code == 401
        service.http.headers["Authorization"] = f"Bearer api-{'x' * 32}"
        assert service.get("/workers") == []
        assert "takes a token" in service.register(engine, expected=403)["error"]
        service.http.headers["Authorization"] = f"Bearer admin-{'x' * 32}"
        service.register(engine)


def test_the_routes_are_there_only_with_compat() -> None:
    with Running() as service:
        assert service.http.get(f"{service.url}/workers").status_code == 404
        assert service.http.post(f"{service.url}/query", json={}).status_code == 404


def test_an_engine_that_is_not_there_yet_is_pending(service: Service, engine: Engine) -> None:
    engine.kill()
    service.register(engine)
    assert service.get("/workers")[0]["listeners"]["0"]["status"] == "pending"
    engine.start()
    wait_until(lambda: service.get("/workers")[0]["status"] == "active")
