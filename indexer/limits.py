"""Limits and timings that few have a reason to change: each is an entry of the `[limits]` table of the configuration file. Values only: pure.

Each group belongs to one part of the program. The file's table has all entries side by side, so a name is in one group only.
"""

from typing import Annotated, Any, Self

from msgspec import Meta, Struct, structs

# One Meta may set a bound and another the description, but no two the same bound.
Seconds = Annotated[float, Meta(ge=0.001, le=10**6)]
Count = Annotated[int, Meta(ge=1, le=2**40)]
CountOrNone = Annotated[int, Meta(ge=0, le=2**40)]


class ReceiveLimits(Struct, frozen=True):
    """What receiving from one engine may hold at most, how soon a dead engine is noticed, and how long a replay may take."""

    inbox_frames_max: Annotated[Count, Meta(description="Messages per stream that wait to be applied; beyond that the oldest are dropped.")] = 100_000
    inbox_bytes_max: Annotated[Count, Meta(description="Bytes of messages per stream that wait to be applied.")] = 256 * 2**20
    inboxes_bytes_max: Annotated[
        Count, Meta(description="Bytes of messages of all streams that wait to be applied, with what Python keeps around each.")
    ] = 512 * 2**20
    frame_bytes_max: Annotated[Count, Meta(description="Largest message from an engine; a larger one ends its connection.")] = 32 * 2**20
    heartbeat_s: Annotated[Seconds, Meta(description="Interval of heartbeats to engines.")] = 1.0
    heartbeat_timeout_s: Annotated[Seconds, Meta(description="A connection that answers no heartbeat for this long is closed.")] = 3.0
    reconnect_s: Annotated[Seconds, Meta(description="Interval of attempts to connect to an engine.")] = 0.1
    replay_idle_s: Annotated[Seconds, Meta(description="Longest silence before and between the replies of a replay.")] = 2.0
    replay_total_s: Annotated[Seconds, Meta(description="Longest duration of one replay request.")] = 120.0


class RecoveryLimits(Struct, frozen=True):
    """When a stream asks its engine for what it may have missed."""

    silence_s: Annotated[Seconds, Meta(description="After this silence a stream asks the engine whether a last batch was lost.")] = 1.0
    silence_max_s: Annotated[Seconds, Meta(description="Longest interval between these requests while the silence lasts.")] = 5.0
    replay_retry_s: Annotated[Seconds, Meta(description="First pause before an unanswered replay request is repeated; it doubles each time.")] = 0.25
    replay_retry_max_s: Annotated[Seconds, Meta(description="Longest such pause.")] = 5.0
    replay_give_up_s: Annotated[Seconds, Meta(description="After this long without an answer a stream continues without replay, as partial.")] = 30.0
    snapshot_bytes_max: Annotated[Count, Meta(description="Largest snapshot of an engine; 1,000,000 blocks take about 50 MB.")] = 512 * 2**20
    snapshot_retry_s: Annotated[Seconds, Meta(description="First pause before another snapshot of an engine is asked for; it doubles each time.")] = (
        5.0
    )
    snapshot_retry_max_s: Annotated[Seconds, Meta(description="Longest such pause.")] = 600.0


class WireLimits(Struct, frozen=True):
    """What a payload may hold at most. Together they bound what is built from one, whatever its size: see docs/explanation/performance.md."""

    events_per_batch_max: Annotated[Count, Meta(description="Most events in a batch; a larger batch is refused.")] = 100_000
    hashes_per_batch_max: Annotated[Count, Meta(description="Most hashes in a batch; events beyond are refused.")] = 262_144
    tokens_per_batch_max: Annotated[Count, Meta(description="Most tokens in a batch; events beyond are refused.")] = 4_194_304
    hashes_per_event_max: Annotated[Count, Meta(description="Most hashes in an event.")] = 65_536
    tokens_per_event_max: Annotated[Count, Meta(description="Most tokens in an event.")] = 2_097_152
    block_size_max: Annotated[Count, Meta(description="Largest block size, in tokens.")] = 65_536
    text_length_max: Annotated[Count, Meta(description="Longest LoRA name or cache salt of an event, in characters.")] = 4_096
    extra_keys_bytes_max: Annotated[Count, Meta(description="Most bytes of extra keys of one block.")] = 65_536


class StateLimits(Struct, frozen=True):
    """What a stream may remember beyond what its engine holds."""

    copies_max: Annotated[int, Meta(ge=1, le=255, description="Most copies counted per block.")] = 255
    removed_max: Annotated[Count, Meta(description="Removed blocks per stream whose keys are remembered.")] = 65_536
    parked_max: Annotated[Count, Meta(description="Blocks per stream that may wait for their parent.")] = 65_536
    parked_bytes_max: Annotated[Count, Meta(description="Bytes of tokens and keys of these blocks.")] = 64 * 2**20
    parked_max_s: Annotated[Seconds, Meta(description="How long a block may wait for its parent.")] = 600.0
    gpu_blocks_max: Annotated[
        Count, Meta(description="Blocks per stream and KV-cache group on the gpu; beyond that the oldest are dropped, and the stream is partial.")
    ] = 4_000_000
    lower_tier_blocks_max: Annotated[
        Count, Meta(description="Blocks per stream, KV-cache group and tier below the gpu; beyond that the oldest are dropped.")
    ] = 1_000_000


class StoreLimits(Struct, frozen=True):
    """What Redis keeps of a model's changes, and what the next owner of a stream keeps of its messages."""

    log_entries_max: Annotated[Count, Meta(description="Approximate length of a model's log in Redis, in entries.")] = 100_000
    ring_frames_max: Annotated[Count, Meta(description="Messages of a stream without replay that the indexer next in line keeps.")] = 4_096
    ring_bytes_max: Annotated[Count, Meta(description="Bytes of messages of a stream without replay that the next in line keeps.")] = 32 * 2**20


class HttpLimits(Struct, frozen=True):
    """How long a request may take to arrive and a response to be read, and what may wait to be read."""

    head_timeout_s: Annotated[Seconds, Meta(description="How long a request's head may take to arrive; then its connection is closed.")] = 30.0
    body_timeout_s: Annotated[Seconds, Meta(description="How long a request's body may take to arrive.")] = 30.0
    answer_timeout_s: Annotated[
        Seconds, Meta(description="A connection of whose response less than 1 MiB is read in this time, and not all of it, is closed.")
    ] = 30.0
    unread_bytes_max: Annotated[
        Count, Meta(description="Bytes of responses that wait to be read, of all connections; beyond that those that wait longest are closed.")
    ] = 64 * 2**20
    bodies_bytes_max: Annotated[
        Count,
        Meta(description="Bytes of all requests, over HTTP and gRPC, that arrive or are not answered yet; beyond that requests get 429."),
    ] = 256 * 2**20


class TokenizeLimits(Struct, frozen=True):
    """How text becomes tokens, and how many of the results are remembered."""

    tokenize_timeout_s: Annotated[Seconds, Meta(description="Longest wait for tokens, from an engine or from a local tokenizer.")] = 2.0
    tokenize_answer_bytes_max: Annotated[Count, Meta(description="Largest response of an engine to a request for tokens.")] = 16 * 2**20
    tokenize_text_bytes_max: Annotated[Count, Meta(description="Longest text that a local tokenizer takes, in bytes of UTF-8.")] = 4 * 2**20
    tokenize_cache_entries_max: Annotated[CountOrNone, Meta(description="Prompts and chats whose tokens are cached; 0 for none.")] = 10_000
    tokenize_cache_bytes_max: Annotated[CountOrNone, Meta(description="Bytes of the cache of tokens.")] = 64 * 2**20


class RoutingLimits(Struct, frozen=True):
    """Fine tuning of `/v1/route`, and of the loads that `/v1/explain` shows."""

    load_max_age_s: Annotated[Seconds, Meta(description="A pod's load that is older counts as unknown.")] = 5.0
    route_seed: Annotated[int | None, Meta(description="Seed of the choice among equal pods; by default random for each process.")] = None
    route_prefill_tokens_per_s: Annotated[
        float, Meta(ge=1, le=10**9, description="Prefill rate of pods as long as no engine reports one, in tokens a second.")
    ] = 8_000.0
    route_min_match_blocks: Annotated[Count, Meta(description="Shortest match that the policy prefix considers, in blocks.")] = 4
    route_overload_s: Annotated[
        Seconds, Meta(description="The policy session leaves a pod whose queue is longer than the shortest by this many seconds.")
    ] = 2.0
    route_forget_s: Annotated[Seconds, Meta(description="How long a routed request counts if it is never reported as done.")] = 10.0
    cell_timeout_s: Annotated[Seconds, Meta(description="Longest wait for the part of a cell; then requests are answered without it.")] = 0.5
    route_speculative_s: Annotated[
        float, Meta(ge=0, le=3600, description="How long the blocks of a routed prompt count as held before they are announced; 0 for not at all.")
    ] = 2.0
    pick_timeout_s: Annotated[Seconds, Meta(description="Longest wait of /v1/pick for the tokens of a prompt; then it picks by load.")] = 1.0


class GatewayLimits(Struct, frozen=True):
    """What gateways may ask for at once, and how they are told that the service ends."""

    gateway_calls_max: Annotated[Count, Meta(description="Most calls of gateways at once over one connection; each is a request.")] = 16_384
    gateway_notice_s: Annotated[
        Seconds,
        Meta(description="After SIGTERM new calls are taken for this long, while the health service says no, so that gateways notice."),
    ] = 5.0
    watches_max: Annotated[Count, Meta(description="Most clients that watch the pods over gRPC at once.")] = 256
    watch_interval_s: Annotated[Seconds, Meta(description="Interval of looks at the pods for them.")] = 0.5


class ExplainLimits(Struct, frozen=True):
    """What is kept so that `/v1/explain` can say why a block is gone."""

    explain_removals_max: Annotated[
        int, Meta(ge=0, le=2**31, description="Blocks per stream of the last changes with removals that are kept; 0 for none.")
    ] = 1_024


class Limits(Struct, frozen=True):
    """All entries of `[limits]`, by group. `Limits.of(silence_s=0.5)` sets single ones by their names in the file."""

    receive: ReceiveLimits = ReceiveLimits()
    recovery: RecoveryLimits = RecoveryLimits()
    wire: WireLimits = WireLimits()
    state: StateLimits = StateLimits()
    store: StoreLimits = StoreLimits()
    http: HttpLimits = HttpLimits()
    tokenize: TokenizeLimits = TokenizeLimits()
    routing: RoutingLimits = RoutingLimits()
    gateway: GatewayLimits = GatewayLimits()
    explain: ExplainLimits = ExplainLimits()

    @classmethod
    def of(cls, **entries: Any) -> Self:
        """The defaults, but for these entries. They are not checked. Raises TypeError for a name that is no entry."""
        groups = {}
        for field in structs.fields(cls):
            names = entries.keys() & set(field.type.__struct_fields__)
            groups[field.name] = field.type(**{name: entries.pop(name) for name in names})
        if entries:
            raise TypeError(f"not entries of [limits]: {', '.join(entries)}")
        return cls(**groups)

    def entries(self) -> dict[str, Any]:
        """Every entry by its name in the file."""
        return {name: value for group in structs.asdict(self).values() for name, value in structs.asdict(group).items()}
