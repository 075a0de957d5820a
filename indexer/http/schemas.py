"""Types of the requests and responses of the routes of all roles."""

from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from indexer.engines.spec import AT_REPLAY, EngineSpec
from indexer.http.problems import ProblemDetails
from indexer.streams.pool import PodStatus
from indexer.streams.readiness import Readiness


class PodsAnswer(Struct, frozen=True):
    """Every registered pod, or a page of them. `next`: what `after` has to be for the next page, left out where there is none."""

    pods: list[PodStatus]
    next: str | UnsetType = UNSET


class HealthAnswer(Struct, frozen=True):
    """The process lives."""

    status: str


class PodSpec(EngineSpec, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a pod's events come from. `pod`, if given, must be the name in the path."""

    pod: str | None = None  # type: ignore[assignment]  # the path has the name


TYPES: tuple[Any, ...] = (PodSpec, PodStatus, PodsAnswer, HealthAnswer, Readiness, ProblemDetails)

_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_TCP = rf"tcp://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):{_PORT}"
ENDPOINT = {"type": "string", "pattern": f"^{_TCP}$", "examples": ["tcp://10.0.0.7:5557"]}
HTTP_BASE = {
    "type": "string",
    "pattern": rf"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:{_PORT})?(/[A-Za-z0-9._~/-]{{0,100}})?$",
    "examples": ["http://10.0.0.7:8000"],
}
ENDPOINT_OR_IPC = {**ENDPOINT, "pattern": f"^({_TCP}|ipc://[!-~]{{1,100}})$"}

COMPONENT = "#/components/schemas/{name}"


def components(*more: Any, allows_ipc: bool = False) -> dict[str, Any]:
    """The JSON schemas of these types and of `more`, by name, for the OpenAPI document. `allows_ipc`: whether a pod may have ipc:// endpoints."""
    endpoint = ENDPOINT_OR_IPC if allows_ipc else ENDPOINT
    _, schemas = msgspec.json.schema_components((*more, *TYPES), ref_template=COMPONENT)
    # A pod that dials in has no events endpoint; its spec can only name the replay endpoint.
    schemas["PodSpec"]["anyOf"] = [{"required": [key], "properties": {key: endpoint}} for key in ("events", "replay")]
    schemas["PodSpec"]["allOf"] = [{"anyOf": [{"properties": {key: {"type": "null"}}} for key in ("ranks", "rank")]}]
    for key in ("events", "replay"):
        schemas["PodSpec"]["properties"][key]["anyOf"] = [endpoint, {"type": "null"}]
    schemas["PodSpec"]["properties"]["snapshot"]["anyOf"] = [{"enum": [AT_REPLAY]}, ENDPOINT, {"type": "null"}]
    schemas["PodSpec"]["properties"]["http"]["anyOf"] = [HTTP_BASE, {"type": "null"}]
    return schemas
