"""Engine specs, as users give them: on the command line, in a variable, in the configuration file, or as JSON over HTTP."""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from typing import Annotated, Any, Literal, Self, get_args

import msgspec
from msgspec import Meta, Struct

from indexer.core.stream_state import Counting
from indexer.errors import SettingError, field_first
from indexer.masking import masked

_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+(%\w+)?\]|[^:/\[\]*\s]+):(?P<port>\d{1,5})")
_IPC = re.compile(r"ipc://\S+")
_HTTP = re.compile(r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/\[\]@?#*\s]+)(?::(?P<port>\d{1,5}))?(?P<path>/[!-~]*)?")
HTTP_LENGTH_MAX = 2_048
NAME_LENGTH_MAX = 512

Name = Annotated[str, Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
RANKS_MAX = 1024
DROPPED_BLOCKS_MAX = 64
ALIASES_MAX = 64
PREFILL_TOKENS_PER_S_MAX = 1e9
ALIAS_SEPARATOR = "|"


Role = Literal["both", "prefill", "decode"]
# How a snapshot is asked for at the replay endpoint.
AT_REPLAY = "replay"


class EngineSpec(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A pod, the model that it serves, and the endpoints of its streams.

    `events` and `replay`: `tcp://host:port` or `ipc://path`; without `events` the pod dials us. `ranks=N`: ranks 0 to N - 1, rank r at both
    ports + r, or all at the same ports with `ranks_share_port`; `rank`: one stream, of that rank. `topic`: subscription prefix.
    `offload_block_size`: tokens per block of an offloading connector that announces none. `http`: base URL of the pod's own API, `http://<pod>` by
    default. `drops_last_block`: how many of the last matched blocks the engine computes again, as with EAGLE and MTP drafters; true is one.
    `aliases`: more names that the engine serves the model by. `prefill_tokens_per_s`: how fast it computes prompts, in place of what is measured.
    `role`: what it does of a request where prompts and answers are computed by different pods; a pod for `prefill` is no destination of requests.
    `snapshot`: where the engine is asked for all that it holds: `replay`, at its replay endpoint, or the endpoint for it, `tcp://host:port`, which is
    at the host of `replay`; rank r at port + r.
    """

    pod: Name
    model: Name
    events: str | None = None
    replay: str | None = None
    ranks: Annotated[int, Meta(ge=1, le=RANKS_MAX)] | None = None
    rank: Annotated[int, Meta(ge=0, le=65535)] | None = None
    topic: Annotated[str, Meta(max_length=NAME_LENGTH_MAX)] = ""
    counting: Counting = "copies"
    offload_block_size: Annotated[int, Meta(ge=1, le=2**20)] | None = None
    http: Annotated[str, Meta(max_length=HTTP_LENGTH_MAX)] | None = None
    drops_last_block: bool | Annotated[int, Meta(ge=0, le=DROPPED_BLOCKS_MAX)] = False
    aliases: Annotated[tuple[Name, ...], Meta(max_length=ALIASES_MAX)] = ()
    ranks_share_port: bool = False
    prefill_tokens_per_s: Annotated[float, Meta(ge=1.0, le=PREFILL_TOKENS_PER_S_MAX)] | None = None
    role: Role = "both"
    snapshot: Annotated[str, Meta(max_length=HTTP_LENGTH_MAX)] | None = None

    @classmethod
    def from_text(cls, text: str, source: str = "--engine") -> Self:
        """Parse `pod=…,model=…,events=…`. Raises SettingError."""
        given: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = part.partition("=")
            key = key.strip()
            if not equals:
                raise SettingError(source, text, f"{part.strip()!r} is not key=value; keys are {', '.join(cls.__struct_fields__)}")
            if key in given:
                raise SettingError(source, text, f"{key} is given twice")
            given[key] = value.strip()
        return cls.from_mapping(given, source, text, strict=False)

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], source: str, shown: object = None, *, strict: bool = True) -> Self:
        """Check a spec's keys and values. Raises SettingError that names what was wrong and what would be right."""
        shown = dict(given) if shown is None else shown
        for key in given:
            if key not in cls.__struct_fields__:
                raise SettingError(source, shown, f"unknown key {key!r}; keys are {', '.join(cls.__struct_fields__)}")
        for key in ("pod", "model", "events"):
            # A pod that dials us has no events endpoint. Its spec gives its replay endpoint.
            if not given.get(key) and not (key == "events" and given.get("replay")):
                raise SettingError(source, shown, f"{key} is required")
        if given.get("counting", "copies") not in get_args(Counting):
            raise SettingError(source, shown, f"counting should be {' or '.join(get_args(Counting))}, not {given['counting']!r}")
        if given.get("role", "both") not in get_args(Role):
            raise SettingError(source, shown, f"role should be {', '.join(get_args(Role))}, not {given['role']!r}")
        if isinstance(aliases := given.get("aliases"), str):
            given = {**given, "aliases": [alias for each in aliases.split(ALIAS_SEPARATOR) if (alias := each.strip())]}
        try:
            spec = msgspec.convert(given, cls, strict=strict)
        except msgspec.ValidationError as error:
            raise SettingError(source, shown, field_first(str(error))) from None
        spec._check(source, shown)
        return spec

    def _check(self, source: str, shown: object) -> None:
        for key, name in (("pod", self.pod), ("model", self.model), ("topic", self.topic), *(("aliases", alias) for alias in self.aliases)):
            if name != name.encode(errors="replace").decode():
                raise SettingError(source, ascii(shown), f"{key} should be text that can be written as UTF-8")
        if self.ranks is not None and self.rank is not None:
            raise SettingError(source, shown, "either ranks (ranks 0 to N - 1) or rank (one stream of that rank), not both")
        if self.ranks_share_port and self.ranks is None:
            raise SettingError(source, shown, "ranks_share_port goes with ranks=N, the number of ranks at the port")
        if self.snapshot is not None and (self.replay is None or self.ranks_share_port):
            raise SettingError(source, shown, "snapshot goes with replay, the endpoint of one rank")
        at_own = None if self.snapshot == AT_REPLAY else self.snapshot
        if at_own is not None and _TCP.fullmatch(at_own) is None:
            raise SettingError(source, shown, f"snapshot should be {AT_REPLAY} or tcp://host:port, not {at_own!r}")
        if at_own is not None and host_of(at_own) != host_of(self.replay or ""):
            raise SettingError(source, shown, "snapshot should be at the host of replay: one process of the engine answers both")
        for key, endpoint in (("events", self.events), ("replay", self.replay), ("snapshot", at_own)):
            if endpoint is None:
                continue
            tcp = _TCP.fullmatch(endpoint)
            if tcp is None and not _IPC.fullmatch(endpoint):
                raise SettingError(source, shown, f"{key} should be tcp://host:port or ipc://path, not {endpoint!r}")
            if tcp is None and self._ports > 1:
                raise SettingError(source, shown, f"{key} should be tcp://host:port where ranks > 1, since rank r is at port + r")
            if tcp is not None and not 1 <= int(tcp["port"]) <= 65536 - self._ports:
                raise SettingError(source, shown, f"the port of {key} should be between 1 and 65535, for every rank")
        if self.http is not None and not is_http_base(self.http):
            raise SettingError(
                source, shown, f"http should be http://host[:port][/path] or https://…, without a user or a query, not {masked(self.http)!r}"
            )
        events = {self.endpoints(rank)[0] for rank in self.stream_ranks}
        replays = {self.endpoints(rank)[1] for rank in self.stream_ranks}
        if both := (events & replays) - {None}:
            raise SettingError(source, shown, f"{both.pop()} cannot be for events and for replays; rank r is at both ports + r")
        if both := {self.snapshot_at(rank) for rank in self.stream_ranks} & (events | replays) - {None}:
            raise SettingError(source, shown, f"{both.pop()} cannot be for snapshots and for something else; rank r is at port + r")

    @property
    def dropped_blocks(self) -> int:
        """How many of the last matched blocks the engine computes again."""
        return int(self.drops_last_block)

    @property
    def _ports(self) -> int:
        """How many ports in a row the events have, and the replays."""
        return 1 if self.ranks_share_port else self.ranks or 1

    @property
    def stream_ranks(self) -> range:
        """The ranks of this spec."""
        return range(self.rank, self.rank + 1) if self.rank is not None else range(self.ranks or 1)

    def endpoints(self, rank: int) -> tuple[str | None, str | None]:
        """The events endpoint and the replay endpoint of this rank."""
        offset = self._offset(rank)
        return shifted(self.events, offset), shifted(self.replay, offset)

    def snapshot_at(self, rank: int) -> str | None:
        """`replay`, or the endpoint of this rank's snapshots; None where it is not asked for any."""
        return shifted(self.snapshot, self._offset(rank))

    def _offset(self, rank: int) -> int:
        """How far this rank's ports are behind those that the spec names."""
        return 0 if self.rank is not None or self.ranks_share_port else rank


class ListenSpec(Struct, frozen=True):
    """Where we listen for engines that dial in: rank r at port + r."""

    host: str
    port: int
    ranks: int = 1

    @classmethod
    def from_text(cls, text: str, source: str = "--listen") -> Self:
        """Parse `tcp://*:5557[,ranks=N]`. Raises SettingError."""
        found = re.fullmatch(r"tcp://(?P<host>\*|\[[0-9A-Fa-f:.]+\]|[^:/\[\]*\s,]+):(?P<port>\d{1,5})(,ranks=(?P<ranks>\d{1,4}))?", text)
        if found is None:
            raise SettingError(source, text, "should be tcp://host:port[,ranks=N], where host may be *")
        port, ranks = int(found["port"]), int(found["ranks"] or 1)
        if not 1 <= ranks <= RANKS_MAX or not 1 <= port <= 65536 - ranks:
            raise SettingError(source, text, f"ports should be between 1 and 65535 for every rank, ranks between 1 and {RANKS_MAX}")
        return cls(found["host"], port, ranks)

    def endpoint(self, rank: int) -> str:
        """The endpoint to bind for this rank."""
        return f"tcp://{self.host}:{self.port + rank}"


def replay_of(template: str, host: str, rank: int) -> str:
    """The replay endpoint of a pod that dialled us from this address, by `--listen-replay`."""
    endpoint = shifted(template.replace("{host}", f"[{host}]" if ":" in host else host), rank)
    assert endpoint is not None, "a template is an endpoint"
    return endpoint


def check_replay_template(template: str, source: str) -> None:
    """Raises SettingError."""
    if _TCP.fullmatch(template.replace("{host}", "host")) is None:
        raise SettingError(source, template, "should be tcp://{host}:port, where {host} is the address that a pod dials from")


def shifted(endpoint: str | None, offset: int) -> str | None:
    """The endpoint with its port increased by `offset`. Only tcp endpoints have one."""
    tcp = None if endpoint is None else _TCP.fullmatch(endpoint)
    return endpoint if tcp is None else f"tcp://{tcp['host']}:{int(tcp['port']) + offset}"


def host_of(endpoint: str) -> str | None:
    """The host of a tcp endpoint or of an API base, without brackets."""
    found = _TCP.fullmatch(endpoint) or _HTTP.fullmatch(endpoint)
    return None if found is None else found["host"].strip("[]")


def port_of(endpoint: str) -> int | None:
    """The port of a tcp endpoint or of an API base, the scheme's own where it names none."""
    found = _TCP.fullmatch(endpoint) or _HTTP.fullmatch(endpoint)
    return None if found is None else int(found["port"] or (443 if endpoint.startswith("https:") else 80))


def at_address(endpoint: str, address: str) -> str:
    """The tcp endpoint, or the API base, with an address in place of its host."""
    found = _TCP.fullmatch(endpoint) or _HTTP.fullmatch(endpoint)
    assert found is not None, "only tcp and http have a host"
    start, end = found.span("host")
    return f"{endpoint[:start]}{f'[{address}]' if ':' in address else address}{endpoint[end:]}"


def at_port_of(endpoint: str, other: str) -> str:
    """The tcp endpoint with the port of another one in place of its own."""
    found = _TCP.fullmatch(endpoint)
    assert found is not None, "only tcp has a port"
    return f"tcp://{found['host']}:{port_of(other)}"


def is_http_base(text: str) -> bool:
    """Whether it is `http://host[:port][/path]`, or the same with https."""
    found = _HTTP.fullmatch(text)
    return found is not None and not set("?#") & set(found["path"] or "") and (found["port"] is None or 1 <= int(found["port"]) <= 65535)


def http_base_of(pod: str) -> str:
    """The default base URL of a pod's own API: a pod is usually named by the host and port that routers send requests to."""
    return f"http://[{pod}]" if _is_ipv6(pod) else f"http://{pod}"


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def http_base(specs: Iterable[EngineSpec]) -> str:
    """The base URL of the API of a pod with these specs. They agree, see `check_together`."""
    pod = ""
    for spec in specs:
        pod = spec.pod
        if spec.http is not None:
            return spec.http
    return http_base_of(pod)


def with_shared_port(spec: EngineSpec, highest: int) -> EngineSpec:
    """The spec with ranks up to `highest` at its port, unless it names one rank."""
    if spec.events is None or spec.rank is not None:
        return spec
    return msgspec.structs.replace(spec, ranks=max(spec.ranks or 1, highest + 1), ranks_share_port=True)


def aliases(specs: Iterable[EngineSpec]) -> tuple[str, ...]:
    """The aliases that the specs of a pod give, each once."""
    return tuple(dict.fromkeys(alias for spec in specs for alias in spec.aliases if alias != spec.model))


def prefill_rate(specs: Iterable[EngineSpec]) -> float | None:
    """How many prompt tokens per second a pod with these specs computes, if one of them says so."""
    return next((spec.prefill_tokens_per_s for spec in specs if spec.prefill_tokens_per_s is not None), None)


def role_of(specs: Iterable[EngineSpec]) -> Role:
    """What a pod with these specs does of a request. They agree, see `check_together`."""
    return next((spec.role for spec in specs), "both")


def check_together(specs: Iterable[EngineSpec], source: str) -> None:
    """Several specs may name one pod, with different ranks and the same model. Raises SettingError."""
    models: dict[str, str] = {}
    bases: dict[str, str] = {}
    roles: dict[str, Role] = {}
    ranks: set[tuple[str, int]] = set()
    for spec in specs:
        if spec.http is not None and bases.setdefault(spec.pod, spec.http) != spec.http:
            raise SettingError(
                source, spec.pod, f"this pod is given with two values of http, {bases[spec.pod]!r} and {spec.http!r}; a pod has one API"
            )
        if models.setdefault(spec.pod, spec.model) != spec.model:
            raise SettingError(source, spec.pod, f"this pod is given with two models, {models[spec.pod]!r} and {spec.model!r}; a pod serves one")
        if roles.setdefault(spec.pod, spec.role) != spec.role:
            raise SettingError(source, spec.pod, f"this pod is given with two roles, {roles[spec.pod]} and {spec.role}; a pod has one")
        for rank in spec.stream_ranks:
            if (spec.pod, rank) in ranks:
                raise SettingError(source, spec.pod, f"this pod is given twice with rank {rank}; give each pod and rank once")
            ranks.add((spec.pod, rank))
