"""A stream's status: what its owner reports, what Redis keeps of it, and what `/v1/pods` shows."""

import msgspec
from msgspec import Struct

from indexer.core.groups import Kind
from indexer.core.names import Trust
from indexer.engines.spec import Role


class GroupStatus(Struct, frozen=True):
    """A KV-cache group: the engine's number of it, its kind, its block size and window in tokens, and the blocks that it holds by tier."""

    group: int
    kind: Kind
    block_size: int | None
    window: int | None
    blocks: dict[str, int]


class StreamStatus(Struct, frozen=True):
    """A stream as `/v1/pods` shows it."""

    rank: int
    sequence: int | None
    trust: Trust
    connected: bool
    block_size: int | None
    blocks: dict[str, int]
    batches: int
    gaps: int
    replayed: int
    restarts: int
    last_batch_age_s: float | None
    last_error: str | None
    owner: str | None = None
    highest_token: int | None = None
    adapters: tuple[str, ...] = ()
    other_block_size: int | None = None
    events: str | None = None
    replay: str | None = None
    topic: str = ""
    drops_last_block: int = 0
    """How many of the last matched blocks the engine computes again."""
    groups: tuple[GroupStatus, ...] = ()
    undecided: tuple[str, ...] = ()
    """What the engine does not tell of its groups, so that it may reuse more or less than is known."""
    announcements: int = 0
    """Events that announced blocks and could be used."""
    refused: dict[str, int] = {}
    """Reason → how much of what the engine announced could not be used."""


class PublishedStatus(StreamStatus, frozen=True, kw_only=True):
    """The same as its owner writes it to Redis for all replicas.

    `http`: where the pod's own API begins. `aliases`: more names of its model. `role`: that of its spec. `ready`, `name`, `discovered_by`: see
    `PodStatus`, as the owner's discovery says it.
    """

    http: str | None = None
    aliases: tuple[str, ...] = ()
    role: Role = "both"
    ready: bool = True
    name: str = ""
    discovered_by: str = ""


class _Connected(Struct, frozen=True):
    connected: bool = False


def is_published_connected(status: bytes | None) -> bool:
    """Whether a status that an owner published says that its stream is connected."""
    try:
        return msgspec.json.decode(status or b"{}", type=_Connected).connected
    except msgspec.MsgspecError:
        return False
