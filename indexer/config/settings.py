"""All settings, as one frozen value; `indexer.main.read_settings` makes it.

Every field but `engines` and `limits` is a flag `--its-name`, a variable `KV_INDEXER_ITS_NAME` and an entry `its_name` of the configuration file.
`limits` is the table `[limits]` of that file, which has neither flags nor variables.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from indexer.engines.networks import DEFAULT_NETWORKS, EngineNetworks
from indexer.engines.spec import EngineSpec
from indexer.errors import SettingError
from indexer.limits import Count, Limits, Seconds

PREFIX = "KV_INDEXER_"
_LISTEN_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:/\[\]*\s]+):(?P<port>\d{1,5})")
Words = tuple[str, ...]
Weight = Annotated[float, Meta(ge=0, le=1)]


class Settings(Struct, frozen=True, kw_only=True):
    """Times are in seconds, sizes in bytes. The order is that of the help and of the documentation, see `GROUPS`."""

    engines: tuple[EngineSpec, ...] = ()
    limits: Limits = Limits()

    # Engines
    listen: Annotated[str | None, Meta(description="Endpoint that engines dial in to, tcp://*:5557[,ranks=N]: rank r at port + r.")] = None
    listen_replay: Annotated[str | None, Meta(description="Replay endpoint of engines that dial in, tcp://{host}:5558: rank r at port + r.")] = None
    discover: Annotated[
        Words,
        Meta(description="Find engines: pods:NAMESPACE?selector=…, service:NAMESPACE/NAME, inferencepool:NAMESPACE/NAME, dns:NAME; may be repeated."),
    ] = ()
    kube_api: Annotated[str | None, Meta(description="URL of Kubernetes' API server, for --discover; in a pod the cluster's own by default.")] = None
    kube_token_file: Annotated[str | None, Meta(description="File with the token for it; in a pod that of its service account by default.")] = None
    kube_ca_file: Annotated[str | None, Meta(description="File with the authority that signed its certificate; likewise.")] = None
    allowed_engine_networks: Annotated[
        str, Meta(description="Networks, separated by commas, that pods registered over HTTP or discovered must be in; ipc allows ipc:// too.")
    ] = DEFAULT_NETWORKS
    engine_api_key_file: Annotated[str | None, Meta(description="File with the key for the engines' own API, a bearer token.")] = None
    streams_max: Annotated[int, Meta(ge=1, le=10_000, description="Most streams; each rank of each pod is one.")] = 4_096
    pod_expiry_s: Annotated[Seconds, Meta(description="How long a disconnected pod keeps its blocks.")] = 300.0
    registration_expiry_s: Annotated[
        float, Meta(ge=0, le=10**6, description="How long a pod registered over HTTP may be away before it is forgotten; 0 for ever.")
    ] = 3_600.0
    hash_seed: Annotated[str, Meta(max_length=256, description="Part of every block key; must be equal on all replicas.")] = ""
    engine_hashes: Annotated[
        bool, Meta(description="Keep engine hashes with Redis too, for block_hashes in requests: indexers log them, scorers remember them.")
    ] = False
    load_interval_s: Annotated[
        float, Meta(ge=0, le=3600, description="Interval of asking each pod's own /metrics for its load, for /v1/route; 0 for never.")
    ] = 1.0

    # HTTP
    host: Annotated[str, Meta(description="Address that the HTTP service listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port of the HTTP service; 0 for a free one.")] = 8080
    workers: Annotated[int, Meta(ge=1, le=64, description="Processes that share the port.")] = 1
    api_token_file: Annotated[str | None, Meta(description="File of bearer tokens, one per line; every request but health checks needs one.")] = None
    admin_token_file: Annotated[
        str | None, Meta(description="File of bearer tokens for changing pods; tokens of --api-token-file do not suffice for that then.")
    ] = None
    compat: Annotated[Literal["none", "dynamo", "mooncake"], Meta(description="Answer the routes of another indexer too: dynamo or mooncake.")] = (
        "none"
    )
    tls_cert: Annotated[str | None, Meta(description="PEM file of a certificate and its chain, for HTTP over TLS.")] = None
    tls_key: Annotated[str | None, Meta(description="PEM file of the certificate's private key.")] = None
    body_bytes_max: Annotated[Count, Meta(description="Largest request body.")] = 16 * 2**20
    ready_after_s: Annotated[Seconds, Meta(description="/readyz answers 200 after this long even if engines are missing.")] = 10.0
    shutdown_s: Annotated[Seconds, Meta(description="How long running requests may take after SIGTERM.")] = 3.0

    # Gateways
    gateway_listen: Annotated[
        str | None,
        Meta(description="Address that gateways ask for picks over gRPC (Envoy's ext_proc), 0.0.0.0:9002; needs the extra gateway. By default none."),
    ] = None
    gateway_tls_cert: Annotated[str | None, Meta(description="PEM file of a certificate and its chain; gateways then use TLS.")] = None
    gateway_tls_key: Annotated[str | None, Meta(description="PEM file of its private key.")] = None
    gateway_self_signed: Annotated[
        bool, Meta(description="Speak TLS to gateways with a certificate that is made at the start, for those that do not check it.")
    ] = False
    gateway_fallbacks: Annotated[
        int, Meta(ge=0, le=64, description="Most endpoints that gateways are told besides the picked pod's; many gateways take none.")
    ] = 0
    gateway_drain_s: Annotated[
        Seconds, Meta(description="How long calls of gateways may go on after SIGTERM: longer than the longest answer where answers pass through.")
    ] = 120.0
    cells: Annotated[Words, Meta(description="Answer for these scorers, each of some pods; may be repeated.")] = ()

    # Redis
    redis: Annotated[
        str | None,
        Meta(description="URL of the Redis that replicas share: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://."),
    ] = None
    namespace: Annotated[str, Meta(description="Prefix of every key in Redis.")] = "kvi"
    shards: Annotated[int, Meta(ge=1, le=64, description="Shards of a model in Redis, equal on all indexers.")] = 1
    lease_s: Annotated[Seconds, Meta(description="How long a stream's lease lasts unless renewed.")] = 3.0
    redis_timeout_s: Annotated[Seconds, Meta(description="Longest wait for a response of Redis.")] = 1.0

    # Scoring and routing
    weight_gpu: Annotated[Weight, Meta(description="Weight of a block in GPU memory in the score.")] = 1.0
    weight_cpu: Annotated[Weight, Meta(description="Weight of a block in CPU memory.")] = 0.8
    weight_disk: Annotated[Weight, Meta(description="Weight of a block on disk.")] = 0.5
    weight_other: Annotated[Weight, Meta(description="Weight of a block in any other tier of the pod.")] = 0.3
    route_policy: Annotated[
        Literal["cost", "prefix", "least-load", "round-robin", "session"], Meta(description="Policy of requests to /v1/route that name none.")
    ] = "cost"
    pick_fallbacks: Annotated[int, Meta(ge=0, le=64, description="Most fallbacks in the answer of /v1/pick, besides the picked pod.")] = 2
    pick_prefill_tokens: Annotated[
        int, Meta(ge=0, le=2**31, description="A prompt with more uncached tokens is computed by a pod with role=prefill first, where there is one.")
    ] = 512
    pick_unknown_model: Annotated[
        Literal["refuse", "by-load"],
        Meta(description="Requests to /v1/pick for an unknown model: 404, or a pod by load of the model with most pods."),
    ] = "refuse"

    hot_prefixes: Annotated[int, Meta(ge=0, le=5_000, description="Most prefixes that /v1/hot counts; 0 for none.")] = 0

    # Tokens
    tokenizer: Annotated[Words, Meta(description="my/model=DIR: tokenize for this model here and ask no engine; may be repeated.")] = ()
    lora: Annotated[
        Words, Meta(description="name=my/model: a LoRA adapter of that model, known before an engine announces it; may be repeated.")
    ] = ()

    # Logging
    log_format: Annotated[Literal["text", "json"], Meta(description="Format of the log lines on stderr: text or json.")] = "text"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Lowest level: debug, info, warning or error.")] = "info"
    access_log: Annotated[bool, Meta(description="Log each HTTP request, at level info.")] = False

    @property
    def engine_networks(self) -> EngineNetworks:
        return _networks_of(self.allowed_engine_networks)

    @property
    def tier_weights(self) -> tuple[float, float, float, float]:
        """In the order of the tiers; remote belongs to no pod and has none."""
        return self.weight_gpu, self.weight_cpu, self.weight_disk, self.weight_other


@cache
def _networks_of(text: str) -> EngineNetworks:
    """Each part of a service asks for them."""
    return EngineNetworks.from_text(text)


GROUPS = {
    "engines": "listen",
    "HTTP": "host",
    "gateways": "gateway_listen",
    "Redis": "redis",
    "scoring and routing": "weight_gpu",
    "tokens": "tokenizer",
    "logging": "log_format",
}
"""Heading in the help → the first of its settings."""


class Field(Struct, frozen=True):
    """One setting that is a plain value. `group`: its heading in the help, or the field of `Limits` that it belongs to."""

    name: str
    type: Any
    default: Any
    description: str
    group: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether the flag needs no value: alone, it means true."""
        return isinstance(self.default, bool)

    @property
    def is_list(self) -> bool:
        """Whether it may be repeated: as a flag, separated by `;` in a variable, as a list in the file."""
        return isinstance(self.default, tuple)

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def fields() -> Iterator[Field]:
    """Every setting but the engines and the limits, in the order in which they are documented."""
    starts = {first: group for group, first in GROUPS.items()}
    group = ""
    for field in _fields_of(Settings, group):
        if field.name not in ("engines", "limits"):
            group = starts.get(field.name, group)
            yield msgspec.structs.replace(field, group=group)


def limit_fields() -> Iterator[Field]:
    """Every entry of the table `[limits]`, in the order in which they are documented. They have neither flags nor variables."""
    for group in msgspec.structs.fields(Limits):
        yield from _fields_of(group.type, group.name)


def moved(name: str) -> str:
    """What to say of a limit that is given as if it were a setting, as all were in earlier versions."""
    return f"is the entry {name} in the table [limits] of the configuration file (--config)"


def _fields_of(kind: type[Struct], group: str) -> Iterator[Field]:
    hints = get_type_hints(kind, include_extras=True)
    for info in msgspec.structs.fields(kind):
        yield Field(info.name, hints[info.name], info.default, _description(hints[info.name]), group)


def _description(hint: Any) -> str:
    if get_origin(hint) is not Annotated:
        return ""
    return next((meta.description for meta in get_args(hint)[1:] if isinstance(meta, Meta) and meta.description), "")


def changed_settings(before: Settings, after: Settings) -> list[str]:
    """The names of all settings but the engines that differ, as a user writes them, in alphabetical order."""
    names = [field.name for field in fields() if getattr(before, field.name) != getattr(after, field.name)]
    old, new = before.limits.entries(), after.limits.entries()
    return sorted([*names, *(f"limits.{name}" for name in old if old[name] != new[name])])


def check_listen_address(text: str, source: str) -> None:
    """Raises SettingError for what is no `host:port`."""
    found = _LISTEN_ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise SettingError(source, text, "should be host:port, such as 0.0.0.0:9002 or [::]:9002")


def read_pairs(words: Sequence[str], source: str) -> dict[str, str]:
    """`name=value` of each word; a value may contain `=` too. Raises SettingError."""
    pairs: dict[str, str] = {}
    for word in words:
        name, _, value = (part.strip() for part in word.partition("="))
        if not name or not value:
            raise SettingError(source, word, f"should be {'my/model=DIR' if source == '--tokenizer' else 'name=my/model'}")
        if name in pairs:
            raise SettingError(source, word, f"{name} is given twice")
        pairs[name] = value
    return pairs
