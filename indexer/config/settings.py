"""All settings, as one frozen value; `indexer.main.read_settings` makes it.

Every field is a flag `--its-name`, a variable `KV_INDEXER_ITS_NAME` and an entry `its_name` of the file.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from indexer.engines.networks import DEFAULT_NETWORKS, EngineNetworks
from indexer.engines.spec import EngineSpec
from indexer.errors import SettingError
from indexer.limits import ReceiveLimits, ReplayLimits, StateLimits, WireLimits

T = TypeVar("T", bound=Struct)
PREFIX = "KV_INDEXER_"
# One Meta may set a bound and another the description, but no two the same bound.
Seconds = Annotated[float, Meta(ge=0.001, le=10**6)]
Count = Annotated[int, Meta(ge=1, le=2**40)]
Room = Annotated[int, Meta(ge=0, le=2**40)]
Words = tuple[str, ...]
Weight = Annotated[float, Meta(ge=0, le=1)]


class Settings(Struct, frozen=True, kw_only=True):
    """Times are in seconds, sizes in bytes."""

    engines: tuple[EngineSpec, ...] = ()
    host: Annotated[str, Meta(description="Address that the HTTP service listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port that the HTTP service listens on; 0 takes a free one.")] = 8080
    api_token_file: Annotated[str | None, Meta(description="File of bearer tokens, one a line: every request but health needs one.")] = None
    admin_token_file: Annotated[str | None, Meta(description="The same for changing pods; other tokens are not enough for that then.")] = None
    tls_cert: Annotated[str | None, Meta(description="PEM file of a certificate and its chain: the HTTP service speaks TLS.")] = None
    tls_key: Annotated[str | None, Meta(description="PEM file of the certificate's private key.")] = None
    allowed_engine_networks: Annotated[
        str, Meta(description="Networks in which pods registered over HTTP may be, by commas; ipc allows ipc:// too.")
    ] = DEFAULT_NETWORKS
    engine_api_key_file: Annotated[str | None, Meta(description="File with the key that the engines' own API wants, sent as a bearer token.")] = None
    tokenizer: Annotated[Words, Meta(description="my/model=DIR: tokenize this model here and ask no engine; may be repeated.")] = ()
    lora: Annotated[Words, Meta(description="name=my/model: a LoRA adapter of that model, before any engine announces it; may be repeated.")] = ()
    tokenize_timeout_s: Annotated[Seconds, Meta(description="Longest wait for an engine's tokens, or our own tokenizer's.")] = 2.0
    tokenize_answer_bytes_max: Annotated[Count, Meta(description="Largest answer of an engine's that is read for them.")] = 16 * 2**20
    tokenize_cache_entries_max: Annotated[Room, Meta(description="Prompts and chats whose tokens are remembered; 0 for none.")] = 10_000
    tokenize_cache_bytes_max: Annotated[Room, Meta(description="The same in bytes.")] = 64 * 2**20
    log_format: Annotated[Literal["text", "json"], Meta(description="Form of the log lines on stderr: text or json.")] = "text"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least severity logged: debug, info, warning or error.")] = (
        "info"
    )
    load_interval_s: Annotated[
        float, Meta(ge=0, le=3600, description="How often each pod's own /metrics are asked how busy it is, for /v1/route; 0: never.")
    ] = 1.0
    hash_seed: Annotated[str, Meta(max_length=256, description="Folded into every block key; equal on all replicas.")] = ""
    listen: Annotated[str | None, Meta(description="Where engines dial us, tcp://*:5557[,ranks=N]: rank r at port + r.")] = None
    listen_replay: Annotated[str | None, Meta(description="Replay endpoint of such engines, tcp://{host}:5558: rank r at port + r.")] = None
    redis: Annotated[
        str | None,
        Meta(
            description="Redis that replicas share: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://; without it nothing is shared."
        ),
    ] = None
    namespace: Annotated[str, Meta(description="Beginning of every key in Redis.")] = "kvi"
    lease_s: Annotated[Seconds, Meta(description="How long an indexer owns its streams without renewing that.")] = 3.0
    redis_timeout_s: Annotated[Seconds, Meta(description="Longest wait for an answer of Redis.")] = 1.0
    log_entries_max: Annotated[Count, Meta(description="Entries that the log of a model keeps in Redis, about.")] = 100_000
    ring_frames_max: Annotated[
        Count, Meta(description="Messages kept, per stream without a replay endpoint, by the indexer that is next in line.")
    ] = 4_096
    ring_bytes_max: Annotated[Count, Meta(description="The same in bytes.")] = 32 * 2**20
    streams_max: Annotated[int, Meta(ge=1, le=10_000, description="Most streams followed, one for each rank of each pod.")] = 4_096
    pod_expiry_s: Annotated[Seconds, Meta(description="How long a disconnected pod keeps its blocks before they are dropped.")] = 300.0
    ready_after_s: Annotated[Seconds, Meta(description="/readyz says 200 after this long even if engines are missing.")] = 10.0
    shutdown_s: Annotated[Seconds, Meta(description="How long running requests may take to finish after SIGTERM.")] = 3.0
    head_timeout_s: Annotated[Seconds, Meta(description="How long a request's head may take to arrive; then its connection is closed.")] = 30.0
    body_bytes_max: Annotated[Count, Meta(description="Largest request body.")] = 16 * 2**20
    body_timeout_s: Annotated[Seconds, Meta(description="How long a request body may take to arrive.")] = 30.0
    silence_s: Annotated[Seconds, Meta(description="After this silence an engine is asked whether a last batch was lost.")] = 1.0
    silence_max_s: Annotated[Seconds, Meta(description="Longest interval of these questions while the silence lasts.")] = 5.0
    replay_retry_s: Annotated[Seconds, Meta(description="First pause before an unanswered replay is asked for again; doubles.")] = 0.25
    replay_retry_max_s: Annotated[Seconds, Meta(description="Longest such pause.")] = 5.0
    replay_give_up_s: Annotated[Seconds, Meta(description="After this long without an answer a stream goes on without replay, as partial.")] = 30.0
    replay_idle_s: Annotated[Seconds, Meta(description="Longest silence before and between the replies of a replay.")] = 2.0
    replay_total_s: Annotated[Seconds, Meta(description="Longest duration of one replay request.")] = 120.0
    inbox_frames_max: Annotated[Count, Meta(description="Messages per stream that wait to be applied; the oldest go first.")] = 100_000
    inbox_bytes_max: Annotated[Count, Meta(description="The same in bytes.")] = 256 * 2**20
    receive_hwm: Annotated[int, Meta(ge=1, le=2**31 - 1, description="Receive high-water mark of each SUB socket, in messages.")] = 100_000
    frame_bytes_max: Annotated[Count, Meta(description="Largest message from an engine; a larger one ends its connection.")] = 32 * 2**20
    heartbeat_s: Annotated[Seconds, Meta(description="Interval of heartbeats to engines.")] = 1.0
    heartbeat_timeout_s: Annotated[Seconds, Meta(description="A connection without an answer for this long is closed.")] = 3.0
    reconnect_s: Annotated[Seconds, Meta(description="Interval of attempts to connect to an engine.")] = 0.1
    copies_max: Annotated[int, Meta(ge=1, le=255, description="Cap of the copies counted per block.")] = 255
    removed_max: Annotated[Count, Meta(description="Removed blocks per stream whose keys are remembered.")] = 65_536
    engine_hashes: Annotated[
        bool, Meta(description="Keep engine hashes beside Redis too, for block_hashes in requests: indexers log them, scorers remember them.")
    ] = False
    explain_removals_max: Annotated[
        int, Meta(ge=0, le=2**31, description="Blocks per stream of the last changes with removals, kept for /v1/explain; 0 for none.")
    ] = 1_024
    parked_max: Annotated[Count, Meta(description="Blocks per stream that may wait for their parent.")] = 65_536
    parked_max_s: Annotated[Seconds, Meta(description="How long a block may wait for its parent.")] = 600.0
    events_per_batch_max: Annotated[Count, Meta(description="Most events in a batch; a larger one is refused.")] = 100_000
    hashes_per_batch_max: Annotated[Count, Meta(description="Most hashes in a batch; events beyond are refused.")] = 262_144
    tokens_per_batch_max: Annotated[Count, Meta(description="Most tokens in a batch; events beyond are refused.")] = 4_194_304
    hashes_per_event_max: Annotated[Count, Meta(description="Most hashes in an event.")] = 65_536
    tokens_per_event_max: Annotated[Count, Meta(description="Most tokens in an event.")] = 2_097_152
    block_size_max: Annotated[Count, Meta(description="Largest block size.")] = 65_536
    text_length_max: Annotated[Count, Meta(description="Longest LoRA name or cache salt of an event, in characters.")] = 4_096
    extra_keys_bytes_max: Annotated[Count, Meta(description="Most bytes of extra keys of one block.")] = 65_536
    weight_gpu: Annotated[Weight, Meta(description="Weight of a block in gpu memory in the score.")] = 1.0
    weight_cpu: Annotated[Weight, Meta(description="Weight of a block in cpu memory.")] = 0.8
    weight_disk: Annotated[Weight, Meta(description="Weight of a block on disk.")] = 0.5
    weight_other: Annotated[Weight, Meta(description="Weight of a block in any other tier of the pod's own.")] = 0.3
    load_max_age_s: Annotated[Seconds, Meta(description="An older load of a pod is unknown.")] = 5.0
    route_policy: Annotated[
        Literal["cost", "prefix", "least-load", "round-robin", "session"], Meta(description="The policy of a request to /v1/route that names none.")
    ] = "cost"
    route_seed: Annotated[int | None, Meta(description="Seed of what decides among equal pods; by default another one for each process.")] = None
    route_prefill_tokens_per_s: Annotated[
        float, Meta(ge=1, le=10**9, description="Prefill rate of pods while none has told its own, in tokens a second.")
    ] = 8_000.0
    route_min_match_blocks: Annotated[Count, Meta(description="The policy prefix looks at matches of so many blocks or more.")] = 4
    route_overload_s: Annotated[
        Seconds, Meta(description="The policy session leaves a pod whose queue is by so many seconds longer than the shortest.")
    ] = 2.0
    route_forget_s: Annotated[Seconds, Meta(description="How long a routed request counts that nobody told to be done.")] = 10.0
    route_speculative_s: Annotated[
        float, Meta(ge=0, le=3600, description="How long the blocks of a routed prompt count as held before they are announced; 0: not at all.")
    ] = 2.0

    @property
    def receive_limits(self) -> ReceiveLimits:
        return self._part(ReceiveLimits)

    @property
    def replay_limits(self) -> ReplayLimits:
        return ReplayLimits(self.replay_idle_s, self.replay_total_s, self.frame_bytes_max)

    @property
    def wire_limits(self) -> WireLimits:
        return self._part(WireLimits)

    @property
    def state_limits(self) -> StateLimits:
        return self._part(StateLimits)

    @property
    def engine_networks(self) -> EngineNetworks:
        return EngineNetworks.from_text(self.allowed_engine_networks)

    @property
    def tier_weights(self) -> tuple[float, float, float, float]:
        """In the order of the tiers; remote is nobody's own and has none."""
        return self.weight_gpu, self.weight_cpu, self.weight_disk, self.weight_other

    def _part(self, kind: type[T]) -> T:
        return kind(**{name: getattr(self, name) for name in kind.__struct_fields__ if hasattr(self, name)})


class Field(Struct, frozen=True):
    """One setting that is a plain value."""

    name: str
    type: Any
    default: Any
    description: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone says yes."""
        return isinstance(self.default, bool)

    @property
    def is_list(self) -> bool:
        """Whether it may be repeated: as a flag, between `;` in a variable, as a list in the file."""
        return isinstance(self.default, tuple)

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


def fields() -> Iterator[Field]:
    """Every setting but the engines, in the order in which they are documented."""
    hints = get_type_hints(Settings, include_extras=True)
    for info in msgspec.structs.fields(Settings):
        if info.name != "engines":
            yield Field(info.name, hints[info.name], info.default, _description(hints[info.name]))


def _description(hint: Any) -> str:
    if get_origin(hint) is not Annotated:
        return ""
    return next((meta.description for meta in get_args(hint)[1:] if isinstance(meta, Meta) and meta.description), "")


def read_pairs(words: Sequence[str], source: str) -> dict[str, str]:
    """`name=value` of each; a value may hold `=` too. Raises SettingError."""
    found: dict[str, str] = {}
    for word in words:
        name, _, value = (part.strip() for part in word.partition("="))
        if not name or not value:
            raise SettingError(source, word, f"should be {'my/model=DIR' if source == '--tokenizer' else 'name=my/model'}")
        if name in found:
            raise SettingError(source, word, f"{name} is given twice")
        found[name] = value
    return found
