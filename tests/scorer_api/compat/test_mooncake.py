"""`--compat mooncake`: the routes, shapes and codes of Mooncake's conductor, in msgpack and in JSON."""

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.engine import Engine, removed, stored
from tests.running import Running
from tests.waiting import wait_until

TWELVE = list(range(1, 13))
PROFILE = {"strategy": "vllm_v1", "algorithm": "sha256_cbor", "python_hash_seed": "0", "index_projection": "low64_be"}
# As Mooncake's guide gives it for the seed "0".
DIGEST = "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e"


class Service(Running):
    """A service with --compat mooncake. `asks_json`: whether it is asked in JSON."""

    asks_json = False

    def __init__(self, *engines: str) -> None:
        super().__init__(*engines, compat="mooncake")

    def ask(self, path: str, expected: int = 200, /, **body: Any) -> Any:
        content = msgspec.json.encode(body) if self.asks_json else msgspec.msgpack.encode(body)
        media_type = "application/json" if self.asks_json else "application/msgpack"
        response = self.http.post(f"{self.url}{path}", content=content, headers={"Content-Type": media_type})
        assert response.headers["content-type"] == media_type
        answer = (msgspec.json if self.asks_json else msgspec.msgpack).decode(response.content)
        assert response.status_code == expected, answer
        return answer

    def register(self, engine: Engine, expected: int = 200, **more: Any) -> Any:
        answer = self.ask("/register", expected, **{**registration(engine), **more})
        if expected == 200 and engine.is_alive:
            wait_until(engine.subscriptions)  # what it publishes before is lost: it has no replays
        return answer

    def query(self, tokens: list[int] | bytes = TWELVE, **more: Any) -> Any:
        return self.ask("/query", **{"model": "m", "block_size": 4, "token_ids": tokens, **more})["instances"]


def registration(engine: Engine) -> dict[str, Any]:
    return {
        **{"endpoint": f"tcp://127.0.0.1:{engine.events_port}", "replay_endpoint": "", "type": "vLLM", "modelname": "m", "lora_name": ""},
        **{"tenant_id": "default", "instance_id": "engine-a", "block_size": 4, "dp_rank": 0, "cache_group": 0, "hash_profile": PROFILE},
    }


def hit(gpu: int, cpu: int = 0, disk: int = 0, longest: int | None = None) -> dict[str, Any]:
    tiers = {"gpu": gpu, "cpu": cpu, "disk": disk}
    return {"longest_matched": gpu if longest is None else longest, "dp": {"0": gpu}, "rank_matches": {"0": tiers}, **tiers}


@pytest.fixture(params=["msgpack", "JSON"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    with Service() as service:
        service.asks_json = request.param == "JSON"
        yield service


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


def test_an_instance_is_registered_asked_about_and_unregistered(service: Service, engine: Engine) -> None:
    assert service.query() == {}
    expected = {"status": "registered successfully", "instance_id": "engine-a"}
    assert service.register(engine) == service.register(engine) == expected, "the same again changes nothing"
    assert service.query() == {"engine-a": hit(0)}
    engine.publish(stored([1, 2, 3], TWELVE))
    service.wait_for(pod="engine-a", sequence=0)
    assert service.query() == {"engine-a": hit(12)}
    assert service.query(block_size=8) == service.query(tenant_id="acme") == service.query(instance_id="engine-b") == {}
    assert service.query(instance_id="engine-a", lora_name="ad") == {"engine-a": hit(0)}
    gone = service.ask("/unregister", instance_id="engine-a", tenant_id="default", dp_rank=0)
    assert gone == {"status": "unregistered successfully", "removed_instances": ["engine-a|default|0"]}
    assert service.query() == {}
    assert "service not found" in service.ask("/unregister", 404, instance_id="engine-a", dp_rank=0)["error"]


def test_each_tier_counts_its_own_prefix(service: Service, engine: Engine) -> None:
    service.register(engine)
    engine.publish(stored([1, 2, 3], TWELVE))
    engine.publish(stored([1, 2], [], medium="CPU"), stored([1], [], medium="DISK"), stored([3], [], medium="CPU"), removed([3]))
    service.wait_for(pod="engine-a", sequence=1)
    assert service.query() == {"engine-a": hit(8, 12, 4, longest=12)}


def test_tokens_may_be_packed_and_salted(engine: Engine) -> None:
    with Service() as service:
        service.register(engine)
        engine.publish(stored([1, 2, 3], TWELVE, extra_keys=[["salt"], None, None]))
        service.wait_for(pod="engine-a", sequence=0)
        packed = struct.pack("<12i", *TWELVE)
        assert service.query(packed, cache_salt="salt") == {"engine-a": hit(12)}
        assert service.query(packed) == service.query(packed, cache_salt="") == {"engine-a": hit(0)}
        refused = service.ask("/query", 400, model="m", block_size=4, token_ids=packed[:-1])
        assert (refused["reason"], refused["field"]) == ("invalid_value", "token_ids")


def test_ranks_and_tenants(service: Service) -> None:
    with Engine() as first, Engine() as second, Engine() as other:
        service.register(first)
        service.register(second, dp_rank=1)
        service.register(other, instance_id="engine-b", tenant_id="acme")
        second.publish(stored([1, 2], TWELVE[:8]))
        other.publish(stored([1, 2, 3], TWELVE))
        service.wait_for(pod="engine-a", rank=1, sequence=0)
        service.wait_for(pod="engine-b", sequence=0)
        (found,) = service.query().values()
        assert (found["longest_matched"], found["gpu"], found["dp"]) == (8, 8, {"0": 0, "1": 8})
        assert service.query(tenant_id="acme") == {"engine-b": hit(12)}
        service.ask("/unregister", instance_id="engine-a", dp_rank=1)
        assert service.query() == {"engine-a": hit(0)}


def test_mooncakes_own_router_gets_what_it_relies_on() -> None:
    """Its example proxy, mooncake-conductor/example/cache_aware_disagg_proxy.py: what it sends, and what it takes of the answers.

    It names neither a replay endpoint nor a cache group, packs its tokens, sends an id, and picks the instance with the largest whole number.
    """
    shared = {"type": "vLLM", "modelname": "m", "block_size": 4, "tenant_id": "tenant-a", "lora_name": "", "hash_profile": PROFILE}
    headers = {"Content-Type": "application/msgpack", "X-Request-Id": "request-1"}
    with Service() as service, Engine() as first, Engine() as second, Engine() as other:
        for instance, rank, engine in (("prefill-a", 0, first), ("prefill-a", 1, second), ("prefill-b", 0, other)):
            endpoint = f"tcp://127.0.0.1:{engine.events_port}"
            body = msgspec.msgpack.encode({"endpoint": endpoint, "instance_id": instance, "dp_rank": rank, **shared})
            response = service.http.post(f"{service.url}/register", content=body, headers=headers)
            assert response.status_code == 200
            assert msgspec.msgpack.decode(response.content) == {"status": "registered successfully", "instance_id": instance}
            wait_until(engine.subscriptions)
        second.publish(stored([1, 2], TWELVE[:8]))
        other.publish(stored([1], TWELVE[:4]))
        service.wait_for(pod="prefill-a", rank=1, sequence=0)
        service.wait_for(pod="prefill-b", sequence=0)
        tokens = struct.pack("<12i", *TWELVE)
        body = msgspec.msgpack.encode({"model": "m", "block_size": 4, "token_ids": tokens, "tenant_id": "tenant-a", "lora_name": ""})
        response = service.http.post(f"{service.url}/query", content=body, headers=headers)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/msgpack"
        instances = msgspec.msgpack.decode(response.content)["instances"]
        longest = {name: found["longest_matched"] for name, found in instances.items()}
        assert longest == {"prefill-a": 8, "prefill-b": 4}
        assert all(type(length) is int for length in longest.values())
        # As its reference of the API has it.
        fields = {"longest_matched", "dp", "rank_matches", "gpu", "cpu", "disk"}
        assert all(found.keys() == fields for found in instances.values())
        assert instances["prefill-a"]["rank_matches"].keys() == instances["prefill-a"]["dp"].keys() == {"0", "1"}


def test_services_show_what_was_registered(engine: Engine) -> None:
    with Service() as service:
        service.register(engine)
        shown = service.http.get(f"{service.url}/services", headers={"Accept": "application/json"}).json()
        assert shown["count"] == 1
        assert shown["services"][0] == {
            **{"Endpoint": f"tcp://127.0.0.1:{engine.events_port}", "ReplayEndpoint": "", "Type": "vLLM", "ModelName": "m", "LoraName": ""},
            **{"TenantID": "default", "InstanceID": "engine-a", "BlockSize": 4, "DPRank": 0, "CacheGroup": 0},
            "HashProfile": {**PROFILE, "root_digest": DIGEST},
        }
        assert msgspec.msgpack.decode(service.http.get(f"{service.url}/services").content)["count"] == 1
        service.ask("/unregister", instance_id="engine-a", dp_rank=0)
        assert msgspec.msgpack.decode(service.http.get(f"{service.url}/services").content) == {"count": 0, "services": []}


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"endpoint": ""}, "invalid_value", "endpoint"),
        ({"modelname": 7}, "invalid_type", "modelname"),
        ({"block_size": 0}, "out_of_range", "block_size"),
        ({"block_size": "4"}, "invalid_type", "block_size"),
        ({"dp_rank": -1}, "out_of_range", "dp_rank"),
        ({"dp_rank": None}, "invalid_type", "dp_rank"),
        ({"type": "Mooncake"}, "invalid_value", "type"),
        ({"cache_group": 1}, "unsupported", "cache_group"),
        ({"hash_profile": "x"}, "invalid_type", "hash_profile"),
        ({"more": 1}, "unknown_field", "more"),
        ({"endpoint": "nowhere"}, "invalid_registration", None),
    ],
)
def test_a_registration_that_does_not_fit_says_why(service: Service, engine: Engine, change: dict[str, Any], reason: str, field: str | None) -> None:
    refused = service.register(engine, 400, **change)
    assert (refused["reason"], refused.get("field")) == (reason, field)
    assert service.query() == {}


def test_a_registration_that_contradicts_is_refused(service: Service, engine: Engine) -> None:
    service.register(engine)
    for change in ({"modelname": "other"}, {"block_size": 8, "instance_id": "engine-b"}, {"replay_endpoint": "tcp://127.0.0.1:9"}):
        assert service.register(engine, 400, **change)["reason"] == "invalid_registration"


@pytest.mark.parametrize(
    ("change", "reason", "field", "index"),
    [
        ({"model": ""}, "invalid_value", "model", None),
        ({"model": 7}, "invalid_type", "model", None),
        ({"block_size": 0}, "out_of_range", "block_size", None),
        ({"token_ids": [1, -1]}, "out_of_range", "token_ids", 1),
        ({"token_ids": [1, "2"]}, "invalid_type", "token_ids", 1),
        ({"token_ids": 7}, "invalid_type", "token_ids", None),
        ({"lora_id": 7}, "unknown_field", "lora_id", None),
    ],
)
def test_a_query_that_does_not_fit_says_why(service: Service, change: dict[str, Any], reason: str, field: str, index: int | None) -> None:
    refused = service.ask("/query", 400, **{"model": "m", "block_size": 4, "token_ids": [1], **change})
    assert (refused["reason"], refused["field"], refused.get("index")) == (reason, field, index)


def test_a_query_without_a_field_or_format_says_so(service: Service) -> None:
    for field in ("model", "block_size", "token_ids"):
        body = {name: value for name, value in (("model", "m"), ("block_size", 4), ("token_ids", [1])) if name != field}
        refused = service.ask("/query", 400, **body)
        assert (refused["reason"], refused["field"]) == ("missing", field)
    media_type = "application/json" if service.asks_json else "application/msgpack"
    response = service.http.post(f"{service.url}/query", content=b"\xc1", headers={"Content-Type": media_type})
    assert (response.status_code, b"invalid_" in response.content) == (400, True)
    response = service.http.post(f"{service.url}/query", content=b"{}", headers={"Content-Type": "text/plain"})
    assert msgspec.msgpack.decode(response.content)["reason"] == "unsupported_content_type"
