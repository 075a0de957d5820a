"""What is asked of the services over HTTP, and the answers without what changes from run to run."""

import json
from typing import Any, NamedTuple

import httpx
import msgspec

from tests.contract.world import ADAPTER, DIGEST, MODEL, OTHER_MODEL, REFUSED
from tests.running import Client

PACKED = "application/msgpack"
# Fields whose values depend on the time, the process or chance. An `age_s` is a constant only where scorer and indexer are one process.
VOLATILE = {"age_s", "cost_s", "last_batch_age_s", "last_event_age_s", "load_age_s", "id", "owner", "core"}
# Lists of pods and models here are in the order in which these came to be known.
IN_NO_ORDER = ("/v1/pods", "/v1/models")
HEADERS = ("allow", "retry-after", "www-authenticate")
PICK_HEADERS = ("x-gateway-destination-endpoint", "x-kv-fallbacks", "x-kv-request-id", "x-kv-picked-for", "x-kv-by-load")
LONG = list(range(1, 14))


class Asked(NamedTuple):
    """A request. `body`: sent as JSON, bytes as they are. With `packed` it is sent as msgpack, and the answer is wanted so.

    `stays_open`: a pick that is not told to be done. Others are, since they would count until the pod's next figures come.
    """

    method: str
    path: str
    body: Any = None
    packed: bool = False
    headers: dict[str, str] = {}  # noqa: RUF012 - a named tuple's default, which nobody changes
    stays_open: bool = False


def score(**body: Any) -> Asked:
    return Asked("POST", "/v1/score", {"model": MODEL, **body})


def explain(**body: Any) -> Asked:
    return Asked("POST", "/v1/explain", {"model": MODEL, **body})


def route(**body: Any) -> Asked:
    return Asked("POST", "/v1/route", {"model": MODEL, **body})


# In this order: prompts without a match are counted, turns go round.
ASKED = [
    Asked("GET", "/v1/pods"),
    Asked("GET", "/v1/models"),
    Asked("GET", "/healthz"),
    Asked("GET", "/readyz"),
    # Scores.
    score(token_ids=LONG),
    score(token_ids=[]),
    score(token_ids=list(range(500, 513))),
    score(token_ids=LONG, pods=["b", "nobody", "e"], limit=1),
    score(token_ids=list(range(201, 206)), lora_name=ADAPTER),
    score(token_ids=list(range(201, 206)), model=ADAPTER),
    score(token_ids=LONG, cache_salt="salt"),
    score(token_ids=LONG, block_extra_keys=[[0, [["image", -1]]]]),
    score(block_hashes=[1, 2, 999]),
    score(block_hashes=[DIGEST.hex()]),
    # Of this model there is one pod, so it is known which one tokenizes.
    score(model=OTHER_MODEL, prompt="one two three four five six seven eight nine"),
    score(model=OTHER_MODEL, messages=[{"role": "user", "content": "one two three four five"}], add_generation_prompt=False),
    score(token_ids=[1, 2, 3, 4, 5], model=OTHER_MODEL),
    Asked("POST", "/v1/score", {"model": MODEL, "token_ids": LONG}, packed=True),
    Asked("POST", "/v1/score", {"model": MODEL, "token_ids": b"".join(token.to_bytes(4, "little") for token in LONG)}, packed=True),
    Asked("POST", "/v1/score", {"model": MODEL, "block_hashes": [1, DIGEST]}, packed=True),
    Asked(
        "POST",
        "/v1/score/batch",
        {"requests": [{"model": MODEL, "token_ids": LONG, "limit": 1}, {"model": "unknown", "token_ids": LONG}, {"model": MODEL}, 7]},
    ),
    # Explanations.
    explain(token_ids=LONG),
    explain(token_ids=list(range(500, 513)), pods=["a", "nobody"]),
    explain(token_ids=[1, 2, 3], lora_name="unknown"),
    explain(block_hashes=[1, 2, 999]),
    explain(token_ids=[1, 2, 3, 4, 5], model=OTHER_MODEL),
    # Picks.
    route(token_ids=LONG),
    route(token_ids=LONG, policy="prefix", exclude=["a", "nobody"], output_tokens_expected=5),
    route(token_ids=list(range(600, 613)), policy="least-load"),
    route(token_ids=list(range(700, 713)), policy="session", session_id="s", pods=["a", "b"]),
    route(token_ids=[1], pods=["c"]),
    route(token_ids=LONG, exclude=["a", "b", "c"]),
    Asked("POST", "/v1/route/done", {"id": "0123456789abcdef"}),
    # Bodies of clients.
    score(prompt=LONG, temperature=0.7, stream=True),
    Asked("POST", "/v1/pick/v1/completions", {"model": OTHER_MODEL, "prompt": [1, 2, 3, 4, 5], "stream": True}),
    Asked("POST", "/v1/pick/v1/rerank", {"model": OTHER_MODEL, "query": "one"}),
    Asked("GET", "/v1/pick/v1/models", headers={"x-gateway-model-name": OTHER_MODEL}),
    Asked("POST", "/v1/pick", {"model": "unknown", "prompt": "one"}),
    Asked("POST", "/v1/pick", b"{"),
    Asked("DELETE", "/v1/pick/0123456789abcdef"),
    # Mistakes.
    score(token_ids=LONG, model="unknown"),
    explain(token_ids=LONG, model="unknown"),
    route(token_ids=LONG, model="unknown"),
    score(),
    score(token_ids=LONG, prompt="both"),
    score(token_ids=LONG, surplus=1),
    score(token_ids=LONG, cache_sallt="salt"),
    score(token_ids={"not": "a list"}),
    score(token_ids=[-1]),
    score(token_ids=[2**32]),
    score(token_ids=LONG, limit=0),
    score(token_ids=LONG, tools=[]),
    score(token_ids=LONG, block_extra_keys=[[0, [1.5]]]),
    score(token_ids=LONG, block_extra_keys=[["0", []]]),
    score(block_hashes=["not hexadecimal"]),
    score(block_hashes=[1], model=OTHER_MODEL),
    score(model=OTHER_MODEL, prompt=REFUSED),
    score(messages={"role": "user"}),
    route(token_ids=LONG, policy="no-such-policy"),
    Asked("POST", "/v1/score", b"{"),
    Asked("POST", "/v1/score", b"\xc1", packed=True),
    Asked("POST", "/v1/score", b"{}", headers={"Content-Type": "text/plain"}),
    Asked("POST", "/v1/score", {"model": MODEL, "token_ids": [1] * 65_536}),
    Asked("POST", "/v1/score/batch", {"requests": [{}] * 257}),
    Asked("POST", "/v1/route/done", {}),
    Asked("GET", "/v1/score"),
    Asked("GET", "/v1/nothing"),
    Asked("DELETE", "/v1/pods/nobody"),
    Asked("PUT", "/v1/pods/f", b"{"),
    # What is expected of a pod to which a prompt was sent.
    Asked("POST", "/v1/route", {"model": MODEL, "token_ids": list(range(800, 813)), "pods": ["b"]}, stays_open=True),
    score(token_ids=list(range(800, 813)), include_speculative=True),
]


def ask(client: Client, asked: Asked, names: dict[str, str]) -> dict[str, Any]:
    """The request and its answer, as they stand in a snapshot."""
    shown = {"request": f"{asked.method} {asked.path}", **({} if asked.body is None else {"body": printable(asked.body)})}
    if asked.packed:
        shown["packed"] = True
    answer = send(client, asked)
    if "x-kv-request-id" in answer.headers:
        assert client.http.delete(f"{client.url}/v1/pick/{answer.headers['x-kv-request-id']}").status_code == 204
    if asked.path == "/v1/route" and answer.status_code == 200 and not asked.stays_open:
        done = client.http.post(f"{client.url}/v1/route/done", json={"id": answer.json()["id"]})
        assert done.json() == {"id": answer.json()["id"], "known": True}
    return {**shown, **described(answer, names)}


def send(client: Client, asked: Asked) -> httpx.Response:
    kind = PACKED if asked.packed else "application/json"
    headers = {"Content-Type": kind, "Accept": kind, **asked.headers}
    content: bytes | None = None
    if asked.body is not None:
        encode = msgspec.msgpack.encode if asked.packed else msgspec.json.encode
        content = asked.body if isinstance(asked.body, bytes) else encode(asked.body)
    return client.http.request(asked.method, f"{client.url}{asked.path}", content=content, headers=headers)


def described(answer: httpx.Response, names: dict[str, str]) -> dict[str, Any]:
    """Status, type, the headers that say something, and the body."""
    media_type = answer.headers.get("content-type")
    found: dict[str, Any] = {"status": answer.status_code, "type": media_type}
    found |= {name: answer.headers[name] for name in HEADERS if name in answer.headers}
    picked = {name: answer.headers[name] for name in PICK_HEADERS if name in answer.headers}
    if picked:
        found["picked"] = stable(picked | {"x-kv-request-id": "ID"}, names)
    if answer.content:
        body = msgspec.msgpack.decode(answer.content) if media_type == PACKED else msgspec.json.decode(answer.content)
        found["answer"] = stable(body, names)
        if answer.request.url.path in IN_NO_ORDER and answer.is_success:
            found["answer"] = in_order(found["answer"])
    return found


def in_order(value: Any) -> Any:
    """The same with every list in the order of its entries' JSON."""
    if isinstance(value, dict):
        return {key: in_order(entry) for key, entry in value.items()}
    return sorted(map(in_order, value), key=json.dumps) if isinstance(value, list) else value


def as_embedded(value: Any) -> Any:
    """What scorer and indexer in one process say, from what a scorer says that follows Redis: there is no difference but these two."""
    if isinstance(value, dict):
        found = {key: as_embedded(entry) for key, entry in value.items()}
        if "view" in found:
            assert found["view"] == {"source": "redis", "age_s": "AGE_S"}
            found["view"] = {"source": "embedded", "age_s": 0.0}
        if "owner" in found:
            assert found["owner"] == "OWNER"
            found["owner"] = None
        return found
    return [as_embedded(entry) for entry in value] if isinstance(value, list) else value


def stable(value: Any, names: dict[str, str]) -> Any:
    """Without what changes from run to run."""
    if isinstance(value, dict):
        is_one_process = value.get("source") == "embedded"
        return {
            key: key.upper() if key in VOLATILE and entry is not None and not (key == "age_s" and is_one_process) else stable(entry, names)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [stable(entry, names) for entry in value]
    if isinstance(value, str):
        for name, placeholder in names.items():
            value = value.replace(name, placeholder)
    return value


def printable(value: Any) -> Any:
    """A request's body in JSON: bytes in hexadecimal digits, long lists by their length."""
    if isinstance(value, dict):
        return {key: printable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [printable(entry) for entry in value] if len(value) < 64 else f"{len(value)} times {printable(value[0])}"
    return value.hex() if isinstance(value, bytes) else value
