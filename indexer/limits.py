"""Limits on what engines can make this process hold: received, replayed, decoded and remembered. Values only: pure."""

from msgspec import Struct


class ReceiveLimits(Struct, frozen=True):
    """What receiving may hold at most, per stream, and how soon a dead peer is noticed."""

    inbox_frames_max: int = 100_000
    inbox_bytes_max: int = 256 * 2**20
    receive_hwm: int = 100_000
    frame_bytes_max: int = 32 * 2**20
    heartbeat_s: float = 1.0
    heartbeat_timeout_s: float = 3.0
    reconnect_s: float = 0.1


class ReplayLimits(Struct, frozen=True):
    """`idle_s`: longest silence before and between replies. `total_s`: longest duration of one request."""

    idle_s: float = 2.0
    total_s: float = 120.0
    frame_bytes_max: int = 32 * 2**20


class WireLimits(Struct, frozen=True):
    """What a payload may hold at most. Together they bound what is built from one, whatever its size: see docs/explanation/performance.md."""

    events_per_batch_max: int = 100_000
    hashes_per_batch_max: int = 262_144
    tokens_per_batch_max: int = 4_194_304
    hashes_per_event_max: int = 65_536
    tokens_per_event_max: int = 2_097_152
    block_size_max: int = 65_536
    text_length_max: int = 4_096
    extra_keys_bytes_max: int = 65_536


class StateLimits(Struct, frozen=True):
    """What a stream may remember beyond what its engine holds."""

    copies_max: int = 255
    removed_max: int = 65_536
    parked_max: int = 65_536
    parked_max_s: float = 600.0
    roots_max: int = 4_096
    groups_max: int = 256
