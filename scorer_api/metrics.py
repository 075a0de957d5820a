"""The scorer's metrics."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from indexer.core.names import Trust
from scorer_api.index.view import View

PHASE_BUCKETS_S = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0)
OUTCOMES = (
    "match",
    "no_match",
    "malformed",
    "unknown_model",
    "too_large",
    "unsupported_type",
    "wrong_value",
    "too_slow",
    "no_room",
    "no_engine_hashes",
    "no_tokens",
    "disconnected",
    "failed",
)
PHASES = ("decode", "look_up", "encode")
TOKENIZE_OUTCOMES = ("tokens", "refused", "status", "unreachable", "timeout", "malformed", "too_large", "outside")
TOKENIZE_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
TOKENS_FROM = ("cache", "shared", "engine", "local", "nowhere")
ENTRY_OUTCOMES = ("applied", "known", "kept", "reload", "emptied", "closed", "lost", "unreadable")
LOAD_REASONS = ("new", "reload", "lost", "survey", "again")


class ScorerMetrics:
    """All metrics of the query side, in one registry."""

    def __init__(self, registry: CollectorRegistry, view: View) -> None:
        prefixes = Gauge("kv_indexer_hot_prefixes", "Prefixes that are counted for /v1/hot; 0 without --hot-prefixes.", registry=registry)
        prefixes.set_function(lambda: 0 if view.hot is None else view.hot.nodes)
        requests = Counter("kv_indexer_score_requests", "Score requests, by outcome.", ["outcome"], registry=registry)
        latency = Histogram(
            "kv_indexer_score_seconds", "Time spent on a score request, by phase.", ["phase"], buckets=PHASE_BUCKETS_S, registry=registry
        )
        self.requests = {outcome: requests.labels(outcome) for outcome in OUTCOMES}
        explanations = Counter("kv_indexer_explain_requests", "Requests for explanations, by outcome.", ["outcome"], registry=registry)
        self.explanations = {outcome: explanations.labels(outcome) for outcome in ("answered", *OUTCOMES[2:])}
        self.seconds = {phase: latency.labels(phase) for phase in PHASES}
        self.prompt_tokens = Counter("kv_indexer_prompt_tokens", "Tokens of scored prompts.", registry=registry)
        self.matched_tokens = Counter("kv_indexer_matched_tokens", "Tokens of scored prompts that the best pod holds.", registry=registry)
        blocks = Gauge("kv_indexer_index_blocks", "Blocks in the prefix index, counted once per tier.", registry=registry)
        holders = Gauge("kv_indexer_index_holders", "Holders of blocks in the prefix index: (block, tier, rank) triples.", registry=registry)
        blocks.set_function(lambda: sum(index.blocks for index in view.indexes))
        holders.set_function(lambda: sum(index.holders for index in view.indexes))


class TokenMetrics:
    """All metrics of tokenization, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = Counter("kv_indexer_tokenize_requests", "Requests to engines for tokens, by outcome.", ["outcome"], registry=registry)
        found = Counter("kv_indexer_tokenize_texts", "Prompts and chats to be tokenized, by source of their tokens.", ["source"], registry=registry)
        self.requests = {outcome: requests.labels(outcome) for outcome in TOKENIZE_OUTCOMES}
        self.found = {source: found.labels(source) for source in TOKENS_FROM}
        self.seconds = Histogram("kv_indexer_tokenize_seconds", "Time until engines returned tokens.", buckets=TOKENIZE_BUCKETS_S, registry=registry)
        self.cached_bytes = Gauge("kv_indexer_tokenize_cache_bytes", "Size of the token cache.", registry=registry)


class FollowerMetrics:
    """All metrics of following the log in Redis, in one registry."""

    def __init__(self, registry: CollectorRegistry, view: View) -> None:
        entries = Counter("kv_indexer_follower_entries", "Log entries read, by outcome.", ["outcome"], registry=registry)
        loads = Counter("kv_indexer_follower_loads", "Streams loaded from Redis, by reason.", ["reason"], registry=registry)
        self.entries = {outcome: entries.labels(outcome) for outcome in ENTRY_OUTCOMES}
        self.loads = {reason: loads.labels(reason) for reason in LOAD_REASONS}
        self.loaded_blocks = Counter("kv_indexer_follower_loaded_blocks", "Blocks read while loading streams, once per tier.", registry=registry)
        self.loading = Gauge("kv_indexer_follower_loading", "Streams that are being loaded or wait to be loaded.", registry=registry)
        age = Gauge("kv_indexer_follower_age_seconds", "Age of the newest heartbeat of any stream's owner.", registry=registry)
        age.set_function(lambda: view.age_s)
        streams = Gauge("kv_indexer_follower_streams", "Followed streams, by trust.", ["trust"], registry=registry)
        for trust in Trust:
            streams.labels(str(trust)).set_function(partial(view.count, trust))
