"""What tests behind Envoy share: the pods with their service, and requests of clients."""

import hashlib
import json
import threading
import time
from typing import Any

import httpx
from msgspec import Struct

from tests.envoy.pods import Pod
from tests.envoy.proxy import Config, Envoy, connection_manager
from tests.running import Client

SUBSET_HEADER = "x-test-subset"
TEXTS = {"first": "once upon a time there was a prompt " * 4, "second": "of arms and the man I sing, who first " * 4}
FLAGS = {
    "route_policy": "prefix",
    "route_seed": "1",
    "route_speculative_s": "0",
    "route_forget_s": "600",
    "load_interval_s": "0",
    "gateway_notice_s": "0.001",
}


def with_subset(config: Config) -> None:
    """A control plane knows the pods to choose from; here a header names them."""
    manager = connection_manager(config)
    rule = {"metadata_namespace": "envoy.lb.subset_hint", "key": "x-gateway-destination-endpoint-subset", "type": "STRING"}
    kind = "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config"
    to_metadata = {"@type": kind, "request_rules": [{"header": SUBSET_HEADER, "on_header_present": rule}]}
    manager["http_filters"].insert(0, {"name": "envoy.filters.http.header_to_metadata", "typed_config": to_metadata})


class Fleet(Struct, frozen=True):
    """A service with two pods, each with the text of its name in its cache. `port`: where gateways ask."""

    service: Client
    port: int
    pods: dict[str, Pod]

    @property
    def endpoints(self) -> list[str]:
        return [pod.netloc for pod in self.pods.values()]


def completion(pod: str = "first", **more: Any) -> dict[str, Any]:
    """A body whose prompt is in the cache of this pod."""
    return {"model": "m", "prompt": TEXTS[pod], **more}


def ask(envoy: Envoy, content: bytes, **headers: str) -> dict[str, Any]:
    """What the pod says of a request with this body; it arrived whole."""
    response = envoy.http.post("/v1/completions", content=content, headers={"content-type": "application/json", **headers})
    assert response.status_code == 200, (response.status_code, response.text)
    said: dict[str, Any] = response.json()
    assert (said["size"], said["digest"]) == (len(content), hashlib.sha256(content).hexdigest())
    return said


def ask_for(envoy: Envoy, pod: str = "first", **headers: str) -> str:
    """The pod that a request whose prompt this pod has goes to."""
    return str(ask(envoy, json.dumps(completion(pod)).encode(), **headers)["pod"])


def ask_in_chunks(envoy: Envoy) -> tuple[bytes, dict[str, Any]]:
    """A body for the second pod whose length is not told, and what the pod that got it says."""
    content = json.dumps(completion("second", user="x" * 200_000)).encode()
    response = envoy.http.post("/v1/completions", content=(content[start : start + 10_000] for start in range(0, len(content), 10_000)))
    said: dict[str, Any] = response.json()
    return content, said


def assert_what_a_client_names_is_passed_over(envoy: Envoy, fleet: Fleet) -> None:
    forged = {"x-gateway-destination-endpoint": fleet.pods["second"].netloc, "x-prefiller-host-port": "169.254.169.254:80"}
    said = ask(envoy, json.dumps(completion("first")).encode(), **forged)
    assert said["pod"] == "first"
    assert "x-prefiller-host-port" not in said["headers"]


class Streamed(Struct, frozen=True):
    """A streamed answer: its pod, its text, and when its pieces came, in seconds from the request."""

    pod: str
    text: str
    at_s: list[float]


def stream(envoy: Envoy, pod: str = "first", count: int = 5, gap_s: float = 0.1, begun: threading.Event | None = None) -> Streamed:
    """Ask for so many events. `begun`: set once the answer has begun."""
    started_s = time.monotonic()
    pieces, at_s = [], []
    with envoy.http.stream("POST", "/v1/completions", json=completion(pod, stream=count, gap_s=gap_s)) as response:
        assert response.status_code == 200
        if begun is not None:
            begun.set()
        for piece in response.iter_text():
            pieces.append(piece)
            at_s.append(time.monotonic() - started_s)
        return Streamed(response.headers["x-pod"], "".join(pieces), at_s)


def events(count: int) -> str:
    """The text of a whole streamed answer."""
    return "".join(f"data: {number}\n\n" for number in range(count)) + "data: [DONE]\n\n"


def is_answered(envoy: Envoy) -> bool:
    """Whether a request with a body gets its answer."""
    try:
        return envoy.http.post("/v1/completions", json=completion()).status_code == 200
    except httpx.TransportError:
        return False
