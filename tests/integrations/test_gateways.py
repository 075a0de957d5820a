"""Each gateway with its files of deploy/examples, in front of two demo engines."""

import json
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.demo_fleet import MODEL, Chat, DemoFleet, check_chats_stay, client_of, demo_fleet
from tests.integrations.gateways import Gateway, needs
from tests.waiting import wait_until

pytestmark = pytest.mark.integrations

TOKEN = secrets.token_hex(16)
Make = Callable[..., Gateway]


def envoy(file: str) -> Make:
    def make(fleet: DemoFleet, **changes: str) -> Gateway:
        words = [str(Path(sys.executable).parent / "envoy"), "-c", "{folder}/" + file, "--use-dynamic-base-id", "--concurrency", "1"]
        return Gateway(fleet, [*words, "--log-level", "warning"], [file], changes)

    return make


def nginx(fleet: DemoFleet, **changes: str) -> Gateway:
    program = needs("nginx", "nginx-light libnginx-mod-http-js")
    words = [program, "-p", "{folder}", "-c", "{folder}/nginx.conf", "-g", "daemon off; pid {folder}/pid; error_log stderr;"]
    return Gateway(fleet, words, ["nginx.conf", "pick.js"], {"/etc/nginx/kv-indexer": "{folder}", **changes})


def haproxy(fleet: DemoFleet, **changes: str) -> Gateway:
    program = needs("haproxy", "haproxy")
    return Gateway(fleet, [program, "-f", "{folder}/haproxy.cfg"], ["haproxy.cfg", "pick.lua"], {"/etc/haproxy": "{folder}", **changes})


GATEWAYS: dict[str, Make] = {
    "envoy-ext-authz": envoy("envoy-ext-authz.yaml"),
    "envoy-lua": envoy("envoy-lua.yaml"),
    "nginx": nginx,
    "haproxy": haproxy,
}
# What the files say to do with --api-token-file.
WITH_TOKEN = {
    "envoy-ext-authz": {
        "# authorization_request:": "authorization_request:",
        "#   headers_to_add: [{key: x-kv-indexer-token, value: TOKEN}]": f"  headers_to_add: [{{key: x-kv-indexer-token, value: {TOKEN}}}]",
    },
    "envoy-lua": {'-- ["x-kv-indexer-token"] = "TOKEN",': f'["x-kv-indexer-token"] = "{TOKEN}",'},
    "nginx": {"# proxy_set_header X-KV-Indexer-Token TOKEN;": f"proxy_set_header X-KV-Indexer-Token {TOKEN};"},
    "haproxy": {"local TOKEN = nil": f'local TOKEN = {{ "{TOKEN}" }}'},
}


@pytest.fixture(scope="module", params=GATEWAYS)
def behind(request: pytest.FixtureRequest) -> Iterator[tuple[Gateway, DemoFleet]]:
    """Each gateway with a fleet of its own: what one sends changes what the service knows of pods."""
    with demo_fleet() as fleet, GATEWAYS[request.param](fleet) as gateway:
        yield gateway, fleet


@pytest.fixture
def gateway(behind: tuple[Gateway, DemoFleet]) -> Gateway:
    return behind[0]


def by_load(fleet: DemoFleet) -> float:
    return fleet.service.metric("kv_indexer_pick_by_load_total")


def test_the_second_turn_of_a_chat_goes_to_the_pod_of_the_first(behind: tuple[Gateway, DemoFleet]) -> None:
    gateway, fleet = behind
    before = by_load(fleet)
    check_chats_stay(fleet, gateway.http, f"whole-{gateway.port}")
    check_chats_stay(fleet, gateway.http, f"streamed-{gateway.port}", stream=True)
    assert by_load(fleet) == before, "each was looked up"


def test_errors_of_the_service_and_of_the_engine_reach_the_client(gateway: Gateway) -> None:
    unknown = gateway.http.post("/v1/chat/completions", json={"model": "other", "messages": []})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    malformed = gateway.http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert (malformed.status_code, malformed.json()["error"]["type"]) == (400, "invalid_request_error")
    wrong = gateway.http.post("/v1/completions", json={"model": MODEL, "prompt": {"text": 1}})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "BadRequestError")


@pytest.mark.parametrize("name", GATEWAYS)
def test_bodies_arrive_whole(name: str) -> None:
    with demo_fleet() as fleet, GATEWAYS[name](fleet) as gateway:
        for count in (1, 60_000, 300_000):
            body = json.dumps({"model": MODEL, "prompt": [1_000_000 + number for number in range(count)]})
            answer = gateway.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["usage"]["prompt_tokens"]) == (200, count)


def test_a_request_without_a_body_gets_a_pod(gateway: Gateway) -> None:
    assert [model["id"] for model in gateway.http.get("/v1/models").json()["data"]] == [MODEL]


def test_streams_pass_as_they_come(gateway: Gateway) -> None:
    """The demo engine pauses for 10 ms between words."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
        pieces = [piece for piece in response.iter_raw() if piece]
    assert len(pieces) >= 6


@pytest.mark.parametrize("name", GATEWAYS)
def test_the_gateway_has_a_token_of_its_own_beside_the_client_s(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN)
    with demo_fleet("--api-token-file", str(tmp_path / "tokens")) as fleet:
        fleet.service.http.headers["X-KV-Indexer-Token"] = TOKEN
        with (
            GATEWAYS[name](fleet, **WITH_TOKEN[name]) as gateway,
            client_of(str(gateway.http.base_url), authorization="Bearer of-the-client") as client,
        ):
            check_chats_stay(fleet, client, name)
        assert fleet.service.metric("kv_indexer_denied_total") == 0
        assert fleet.service.metric("kv_indexer_pick_requests_total", outcome="picked") == 12


@pytest.mark.parametrize("name", ["envoy-lua", "haproxy"])
def test_the_service_learns_that_a_prompt_is_computed(name: str) -> None:
    with demo_fleet() as fleet, GATEWAYS[name](fleet) as gateway:
        for number in range(8):
            Chat(gateway.http, f"chat-{number}").turn()
        wait_until(lambda: fleet.service.metric("kv_indexer_route_open") == 0)
        assert fleet.service.metric("kv_indexer_route_done_total", outcome="known") >= 8


@pytest.mark.parametrize("name", GATEWAYS)
def test_requests_go_on_without_the_service(name: str) -> None:
    with demo_fleet() as fleet, GATEWAYS[name](fleet) as gateway:
        chat = Chat(gateway.http, name)
        chat.turn()
        fleet.service.stop()
        assert {chat.turn().pod for _ in range(4)} == {"one", "two"}


@pytest.mark.parametrize("name", ["envoy-ext-authz", "envoy-lua", "nginx"])
def test_requests_go_to_another_pod_where_one_is_away(name: str) -> None:
    with demo_fleet() as fleet, GATEWAYS[name](fleet) as gateway:
        chat = Chat(gateway.http, name)
        pod = chat.turn().pod
        fleet.engines[pod].kill()
        fleet.engines[pod].wait()
        assert chat.turn().pod != pod


@pytest.mark.parametrize("name", ["envoy-ext-authz", "envoy-lua"])
def test_a_client_does_not_name_its_pod_itself(name: str) -> None:
    with demo_fleet() as fleet, GATEWAYS[name](fleet) as gateway:
        chat = Chat(gateway.http, name)
        pod = chat.turn().pod
        (other,) = (address for each, address in fleet.addresses.items() if each != pod)
        with client_of(str(gateway.http.base_url), **{"x-gateway-destination-endpoint": other}) as client:
            chat.http = client
            assert chat.turn().pod == pod
            fleet.service.stop()
            assert {Chat(client, name).turn().pod for _ in range(4)} == {"one", "two"}, "round robin, and not what the header says"
