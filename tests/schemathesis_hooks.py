"""What schemathesis has to know of the service that it tests (see test_schemathesis.py); it is loaded into schemathesis' own process."""

import os
import re
from typing import Any
from urllib.parse import unquote

import msgspec
import schemathesis
from schemathesis import GenerationMode
from schemathesis.transport.serialization import Binary

from indexer.http.schemas import ENDPOINT, HTTP_BASE

MODEL, POD = os.environ["TEST_MODEL"], os.environ["TEST_POD"]
# In the loopback network, where nothing listens: what the service dials never leaves this machine.
NOWHERE = "127.66.66.66"
RANKS_MAX = 4


@schemathesis.serializer("application/msgpack")
def to_msgpack(context: schemathesis.SerializationContext, value: Any) -> bytes:
    if has_packed_tokens(value):
        value = of_a_pick(about_the_model(value, is_right=is_right(context.case)), context.case)
    elif is_right(context.case) and isinstance(value.get("token_ids"), str):
        value = {**value, "token_ids": b"\1\2\3\4"}  # what a schema calls a string of format binary is bin in msgpack
    return msgspec.msgpack.encode(changed(value, in_msgpack))


@schemathesis.deserializer("application/msgpack")
def from_msgpack(context: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return msgspec.msgpack.decode(response.content)


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Have bodies be what a schema cannot say, whatever made them: about a model that there is, without contradictions."""
    if case.path.startswith("/v1/pick"):
        case.headers = {**dict(case.headers or {}), "x-gateway-model-name": MODEL}  # most bodies name no model
    is_pod = case.path == "/v1/pods/{pod}"
    if is_pod and unquote(str(case.path_parameters["pod"])) == POD:
        case.path_parameters["pod"] = "another"  # the one that scores are about has to stay
    # schemathesis takes a body that it cannot validate, as one with bin, for wrong once it was changed: these are changed when they are encoded.
    if isinstance(case.body, dict) and not has_packed_tokens(case.body):
        body = changed(case.body, whole)
        case.body = of_a_pod(body) if is_pod else of_a_pick(about_the_model(body, is_right=is_right(case)), case)


def is_right(case: schemathesis.Case) -> bool:
    """Whether the request is meant to be one that the document allows."""
    return case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE


def has_packed_tokens(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("token_ids"), Binary)


def whole(item: Any) -> Any:
    """JSON schema takes 1.0 for an integer; a client of this service writes 1."""
    return int(item) if isinstance(item, float) and item.is_integer() else item


def in_msgpack(item: Any) -> Any:
    if isinstance(item, int) and not isinstance(item, bool):
        return min(max(item, -(2**63)), 2**64 - 1)
    return item.data if isinstance(item, Binary) else item


def changed(value: Any, change: Any) -> Any:
    """The value with every leaf changed."""
    match value:
        case list():
            return [changed(item, change) for item in value]
        case dict():
            return {key: changed(item, change) for key, item in value.items()}
    return change(value)


def about_the_model(body: dict[str, Any], *, is_right: bool) -> dict[str, Any]:
    """Ask for the model that there is; every other prompt begins with what its pod holds."""
    body = dict(body)
    if isinstance(body.get("requests"), list):
        body["requests"] = [about_the_model(one, is_right=is_right) if isinstance(one, dict) else one for one in body["requests"]]
    if isinstance(body.get("model"), str) and body["model"]:
        body["model"] = MODEL
    tokens, extra_keys = body.get("token_ids"), body.get("block_extra_keys")
    if isinstance(tokens, Binary):
        size = len(tokens.data) // 4 * 4
        body["token_ids"] = Binary(tokens.data[:size] if is_right else bytes(size + 1))
    elif isinstance(tokens, list) and (len(tokens) % 2 or not tokens):
        body["token_ids"] = [*range(9 + len(tokens)), *tokens]
        if is_right:
            body |= dict.fromkeys(("lora_name", "cache_salt"))
            extra_keys = body["block_extra_keys"] = None
    if is_right and body.get("token_ids") is not None:
        # What is bin is nothing that schemathesis knows the type of: there may be another source besides.
        body |= dict.fromkeys(("prompt", "messages", "block_hashes"))
    if is_right and not isinstance(body.get("messages"), list):
        body = {name: value for name, value in body.items() if name not in ("tools", "chat_template_kwargs", "add_generation_prompt")}
    if is_right and isinstance(extra_keys, list):
        # Each block once, and no second salt.
        body["block_extra_keys"] = list({entry[0]: entry for entry in extra_keys}.values())
        body["cache_salt"] = None
    return body


def of_a_pick(body: dict[str, Any], case: schemathesis.Case) -> dict[str, Any]:
    """A request for a pick that there can be one for: not among pods that there are not, and by session where it says which."""
    if case.path not in ("/v1/route", "/v1/candidates"):
        return body
    body = dict(body)
    if isinstance(body.get("pods"), list):
        body["pods"] = [*body["pods"], POD]
    if is_right(case) and body.get("policy") == "session" and body.get("session_id") is None:
        body["session_id"] = "s"
    return body


def of_a_pod(body: dict[str, Any]) -> dict[str, Any]:
    """Few ranks, whose ports there are, and not the same for events and replays; nothing but what is not there is dialled."""
    body = dict(body)
    if isinstance(body.get("ranks"), int) and RANKS_MAX < body["ranks"] <= 1024:
        body["ranks"] = RANKS_MAX
    if body.get("ranks_share_port") is True and not isinstance(body.get("ranks"), int):
        body["ranks"] = 2  # the one goes with the other
    if (snapshot := body.get("snapshot")) == "replay" or (isinstance(snapshot, str) and re.fullmatch(ENDPOINT["pattern"], snapshot)):
        # Asked for at the replay endpoint of one rank, or at the same host.
        body |= {
            "replay": f"tcp://{NOWHERE}:3000",
            "ranks_share_port": False,
            "snapshot": snapshot if snapshot == "replay" else f"tcp://{NOWHERE}:5000",
        }
    if isinstance(body.get("pod"), str):
        del body["pod"]  # it would have to be the name in the path
    for key, port in (("events", 2000), ("replay", 3000)):
        if isinstance(body.get(key), str) and body[key].startswith(("tcp://", "ipc://")):
            is_right = re.fullmatch(ENDPOINT["pattern"], body[key])
            body[key] = f"tcp://{NOWHERE}:{port if is_right else 0}"
    if isinstance(body.get("http"), str) and body["http"].startswith(("http://", "https://")):
        body["http"] = f"http://{NOWHERE}:{4000 if re.fullmatch(HTTP_BASE['pattern'], body['http']) else 0}"
    return body
