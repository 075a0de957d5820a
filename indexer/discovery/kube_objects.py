"""The few fields of Kubernetes' objects that are read, and what pods say of engines by convention. Pure."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from msgspec import Struct, field

from indexer.discovery.found_engine import HTTP_PORT, FoundEngine
from indexer.discovery.source_spec import EngineOptions

OWN = "kv-indexer/"
IGNORE = "kv-indexer/ignore"
ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
AIBRIX_MODEL = "model.aibrix.ai/name"
AIBRIX_PORT = "model.aibrix.ai/port"
LLM_D_ROLE = "llm-d.ai/role"
# Any other role, such as encode, serves whole requests as far as we know.
LLM_D_ROLES = {"prefill": "prefill", "decode": "decode", "both": "both", "prefill-decode": "both"}
ENDED = ("Succeeded", "Failed")


class Metadata(Struct, frozen=True, rename="camel"):
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class _ContainerPort(Struct, frozen=True, rename="camel"):
    container_port: int
    name: str = ""


class _Container(Struct, frozen=True):
    ports: list[_ContainerPort] | None = None


class _PodSpec(Struct, frozen=True):
    containers: list[_Container] | None = None


class _Condition(Struct, frozen=True):
    type: str
    status: str


class _PodStatus(Struct, frozen=True):
    phase: str = ""
    pod_ip: str | None = field(default=None, name="podIP")
    conditions: list[_Condition] | None = None


class Pod(Struct, frozen=True):
    """A pod of the core API."""

    metadata: Metadata
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()

    @property
    def is_leaving(self) -> bool:
        return self.metadata.deletion_timestamp is not None

    @property
    def is_ready(self) -> bool:
        """Whether it passes its readiness checks and is not about to end."""
        return not self.is_leaving and any(each.type == "Ready" and each.status == "True" for each in self.status.conditions or ())


class _Selector(Struct, frozen=True, rename="camel"):
    match_labels: dict[str, str] | None = None


class _TargetPort(Struct, frozen=True):
    number: int


class _PoolSpec(Struct, frozen=True, rename="camel"):
    selector: _Selector = _Selector()
    target_ports: list[_TargetPort] | None = None


class InferencePool(Struct, frozen=True):
    """An InferencePool of the Gateway API Inference Extension, v1."""

    metadata: Metadata
    spec: _PoolSpec = _PoolSpec()

    @property
    def selector(self) -> str:
        """Of its pods, as a query has it; empty where it selects none."""
        return ",".join(f"{key}={value}" for key, value in sorted((self.spec.selector.match_labels or {}).items()))

    @property
    def target_ports(self) -> tuple[int, ...]:
        return tuple(port.number for port in self.spec.target_ports or ())


class _SliceConditions(Struct, frozen=True):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class _TargetRef(Struct, frozen=True):
    kind: str = ""
    name: str = ""
    uid: str = ""


class _SliceEndpoint(Struct, frozen=True, rename="camel"):
    addresses: list[str]
    conditions: _SliceConditions = _SliceConditions()
    target_ref: _TargetRef | None = None


class _SlicePort(Struct, frozen=True):
    name: str | None = None
    port: int | None = None


class EndpointSlice(Struct, frozen=True, rename="camel"):
    """An EndpointSlice of discovery.k8s.io/v1: up to a hundred endpoints of a service."""

    metadata: Metadata
    address_type: str = ""
    endpoints: list[_SliceEndpoint] | None = None
    ports: list[_SlicePort] | None = None


def engines_of_pod(pod: Pod, source: str, options: EngineOptions, target_ports: Sequence[int] = ()) -> list[FoundEngine]:
    """The engines in a pod: one, or one for each of several target ports. None before it has an address, nor after its end.

    Raises ValueError for an annotation with a value that cannot be used, which it names.
    """
    annotations = pod.metadata.annotations or {}
    if pod.status.pod_ip is None or pod.status.phase in ENDED or annotations.get(IGNORE) == "true":
        return []
    said = _options(annotations, pod.metadata.labels or {}).over(options)
    ports = _served_ports(annotations, target_ports or (said.http_port or _http_port(pod),))
    address = _address(pod.status.pod_ip)
    return [
        FoundEngine(
            address=address,
            port=port,
            source=source,
            uid=pod.metadata.uid,
            name=pod.metadata.name,
            is_ready=pod.is_ready,
            is_leaving=pod.is_leaving,
            created=pod.metadata.creation_timestamp or "",
            rank=rank if len(target_ports) > 1 else None,
            options=said,
        )
        for rank, port in ports
    ]


def _options(annotations: Mapping[str, str], labels: Mapping[str, str]) -> EngineOptions:
    """What annotations say, and the labels of AIBrix and llm-d where they say nothing. Raises ValueError."""
    role = LLM_D_ROLES.get(labels.get(LLM_D_ROLE, ""))
    fallbacks = {"model": labels.get(AIBRIX_MODEL), "http-port": labels.get(AIBRIX_PORT), "role": role}
    own = {key.removeprefix(OWN): text for key, text in annotations.items() if key.startswith(OWN) and key != IGNORE}
    try:
        return EngineOptions.of({**{key: text for key, text in fallbacks.items() if text is not None}, **own})
    except ValueError as error:
        raise ValueError(f"annotation {OWN}{error}") from None


def _http_port(pod: Pod) -> int:
    named = (port.container_port for container in pod.spec.containers or () for port in container.ports or () if port.name == "http")
    return next(named, HTTP_PORT)


def _served_ports(annotations: Mapping[str, str], ports: Sequence[int]) -> list[tuple[int, int]]:
    """(Index among all, port) of those that are served. Raises ValueError."""
    active = next((annotations[key] for key in ACTIVE_PORTS if key in annotations), None)
    if active is None:
        return list(enumerate(ports))
    try:
        wanted = {int(word) for word in active.split(",") if word.strip()}
    except ValueError:
        raise ValueError(f"annotation {next(key for key in ACTIVE_PORTS if key in annotations)}: should be ports, separated by commas") from None
    return [(index, port) for index, port in enumerate(ports) if port in wanted]


def engines_of_slice(endpoints: EndpointSlice, source: str, options: EngineOptions) -> list[FoundEngine]:
    """The engines among a slice's endpoints. Those of names and not of addresses are passed over."""
    if endpoints.address_type not in ("IPv4", "IPv6"):
        return []
    port = options.http_port or _slice_port(endpoints.ports or ())
    found: list[FoundEngine] = []
    for each in endpoints.endpoints or ():
        ref = each.target_ref or _TargetRef()
        # Null counts as ready, as the API's documentation says.
        is_ready = each.conditions.ready is not False
        found += (
            FoundEngine(
                address=_address(address),
                port=port,
                source=source,
                uid=ref.uid,
                name=ref.name,
                is_ready=is_ready,
                is_leaving=each.conditions.terminating is True,
                options=options,
            )
            for address in each.addresses[:1]
        )
    return found


def _slice_port(ports: Sequence[_SlicePort]) -> int:
    """The one called http, else the first."""
    given = [port for port in ports if port.port is not None]
    named = [port.port for port in given if port.name == "http"] + [port.port for port in given]
    return next((number for number in named if number is not None), HTTP_PORT)


def _address(text: str) -> str:
    """Only an address is ever dialled, never a name. Raises ValueError."""
    return str(ip_address(text))
