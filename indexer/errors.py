"""Every error that this package raises on purpose.

IndexerError
├── SettingError        a setting, flag, variable or engine spec is wrong: the process does not start
│   └── UnresolvedError the host of an endpoint has no address now: it is looked up again
├── NotFollowedError    another indexer follows the stream that is to be changed
├── StoreError          Redis is unreachable or refuses: the caller gets the error, streams continue in memory
│   └── ShardsError     other indexers split models into another number of shards
└── Refused             a frame, batch or event from the network cannot be used: it is counted and skipped
"""

from indexer.masking import masked


class IndexerError(Exception):
    """Something in the indexer went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__doc__)


class SettingError(IndexerError):
    """A setting is wrong.

    Attributes: `key` and `value` as the user gave them, `allowed` what would be right, in words. The message shows no password.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={masked(repr(value))}: {allowed}")
        self.key = key
        self.value = value
        self.allowed = allowed


class UnresolvedError(SettingError):
    """The host of an endpoint has no address at present. The name may be right all the same: DNS may learn it later."""


class NotFollowedError(IndexerError):
    """Another indexer follows streams of a pod. Attributes: `pod`."""

    def __init__(self, pod: str) -> None:
        super().__init__(f"{pod!r} has streams that this process does not follow")
        self.pod = pod


class StoreError(IndexerError):
    """Redis did not carry out a command.

    Attributes: `failure`, one of unreachable, full, read-only, short of replicas, refusing.
    """

    def __init__(self, failure: str) -> None:
        super().__init__(f"Redis is {failure}" if failure != "refusing" else "Redis refuses")
        self.failure = failure


class ShardsError(StoreError):
    """Other indexers split models into another number of shards.

    Attributes: `ours`, `in_redis`, the two numbers; `allowed`, what would be right, in words.
    """

    def __init__(self, ours: int, in_redis: int) -> None:
        super().__init__("refusing")
        self.ours = ours
        self.in_redis = in_redis
        self.allowed = (
            f"models in Redis are split into {in_redis}: give all indexers the same number. "
            "To change it, stop all of them for --pod-expiry-s, or give another --namespace"
        )

    def __str__(self) -> str:
        return f"--shards={self.ours}: {self.allowed}"


def field_first(error: str) -> str:
    """A message of msgspec, with the field that it is about in front: `token_ids[3]: Expected …`."""
    text, _, path = error.partition(" - at `$")
    field = path.rstrip("`").removeprefix(".")
    return f"{field}: {text}" if field else text


class Refused(IndexerError):
    """A message from an engine cannot be used.

    Attributes: `reason`, the value that the `reason` label of `kv_indexer_refused_total` takes.
    """

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(message or reason)
        self.reason = reason


REASONS = {
    "frame_count": "a message of not three frames, or a reply of not three or four",
    "frame_sequence": "a sequence number of not 8 bytes, or the end marker of a replay on the live stream",
    "snapshot_size": "a snapshot of more than `snapshot_bytes_max` of the limits",
    "topic": "a message to --listen whose topic is not kv@pod@model, or beyond 4,096 pods at one port",
    "topic_claimed": "a message to --listen under the name of a pod that another connection or engine has, or of one beyond --streams-max",
    "batch_malformed": "a payload that is no batch of events",
    "batch_nested": "a payload nested too deeply",
    "batch_events": "a batch of more events than `events_per_batch_max` of the limits",
    "event_malformed": "an event whose fields have other types than they should",
    "event_nested": "an event nested too deeply",
    "event_limit": "an event of more hashes, tokens, text or extra keys than allowed",
    "batch_limit": "an event beyond the hashes, tokens or extra keys that a batch may hold; what came before it is applied",
    "hash_type": "a block hash that is neither an integer nor bytes",
    "hash_length": "a block hash of fewer than 8 bytes",
    "token_type": "a token that is no integer",
    "token_range": "a token below 0 or above 2^32 - 1",
    "token_text": "a token that is text (TensorRT-LLM's multimodal digests)",
    "extra_keys": "extra keys that do not line up with the blocks",
    "lookahead": "lookahead tokens that do not line up with the blocks",
    "unaligned": "a number of tokens that is no multiple of the block size, or too small for the hashes",
    "block_size": "another block size than the stream's, or none that makes sense",
    "block_size_changed": "an engine whose blocks turned out to be of another size: what was known of them was dropped",
    "partial_block": "a block that is not full, beside whole ones of its KV-cache group; it is not indexed",
    "groups_max": "an event of a KV-cache group beyond the 255th of a stream",
    "cover_limit": "a larger block that covers its own key only, since those of its batch cover more than 262,144",
    "tier_limit": "a block dropped since its tier had more than `gpu_blocks_max` or `lower_tier_blocks_max` of the limits",
    "key_conflict": "a held hash announced again with other content",
    "ambiguous_key": "two hashes for one key from an engine that announces no extra keys: not indexed",
    "orphan_dropped": "a block that waited too long for its parent or its own announcement, or one too many",
    "rank_mismatch": "a batch that names another rank than its stream's; it is applied to the stream's",
}
"""Values of the `reason` label of `kv_indexer_refused_total`, with their meaning."""

HARMLESS_REASONS = frozenset({"frame_count", "frame_sequence", "snapshot_size", "topic", "topic_claimed", "rank_mismatch"})
"""Refusals after which nothing is missing: a lost batch shows as a gap, what is not a stream's is none of its content, and a batch of another rank is
applied."""

LOSSY_REASONS = frozenset(REASONS) - HARMLESS_REASONS
"""Refusals after which the index may lack blocks that the engine holds, or have blocks that it removed."""
