"""What probes observed, before it is checked. All of it came over a network and may be wrong or contradictory."""

from msgspec import UNSET, Struct, UnsetType

from scorer_api.doctor.checks.reply import Reply


class ObservedStream(Struct, frozen=True):
    """A stream as the service shows it. Fields of a newer service are ignored; `events` is UNSET if an older one does not send it."""

    rank: int
    trust: str
    connected: bool
    sequence: int | None = None
    block_size: int | None = None
    blocks: dict[str, int] = {}
    batches: int = 0
    gaps: int = 0
    replayed: int = 0
    last_error: str | None = None
    owner: str | None = None
    events: str | UnsetType | None = UNSET
    replay: str | None = None
    topic: str = ""
    undecided: tuple[str, ...] = ()
    announcements: int = 0
    refused: dict[str, int] = {}


class ObservedPod(Struct, frozen=True):
    """A pod as the service shows it."""

    pod: str
    model: str
    streams: list[ObservedStream] = []
    http: str | None = None

    @property
    def is_connected(self) -> bool:
        return any(stream.connected for stream in self.streams)

    def shares_port(self, stream: ObservedStream) -> bool:
        """Whether another rank publishes where this one does."""
        return isinstance(stream.events, str) and any(other.rank != stream.rank and other.events == stream.events for other in self.streams)

    @property
    def block_sizes(self) -> set[int]:
        return {stream.block_size for stream in self.streams if stream.block_size is not None}


class ObservedPods(Struct, frozen=True):
    """The answer of /v1/pods."""

    pods: list[ObservedPod]


class ObservedService(Struct, frozen=True):
    """The service's answers. `pods`: None if it did not list them. `wants_tls`: it does not answer without TLS, but accepts a TLS connection."""

    health: Reply
    ready: Reply
    metrics: Reply
    listed: Reply
    pods: list[ObservedPod] | None
    wants_tls: bool = False


class Handshake(Struct, frozen=True):
    """The reply of a socket to a connection.

    `address`: the endpoint with the address that was connected to, None if there was no connection. `is_refused`: nothing listens there. `is_zmq`: it
    speaks ZMQ; `socket_type` and `mechanism` are what it says of itself. `received`: the bytes that it sent, if it does not speak ZMQ.
    """

    address: str | None = None
    error: str = ""
    is_refused: bool = False
    is_zmq: bool = False
    socket_type: str | None = None
    mechanism: str | None = None
    received: bytes = b""


class EventSample(Struct):
    """What arrived at the events endpoint in `seconds`. `skew_s`: the engine's clock minus ours. `undecodable`, `refused`: reason → count."""

    seconds: float
    messages: int = 0
    decoded: int = 0
    topics: list[str] = []
    undecodable: dict[str, int] = {}
    refused: dict[str, int] = {}
    ranks: set[int] = set()
    last_sequence: int | None = None
    skew_s: float | None = None
    error: str = ""


class ReplaySample(Struct):
    """What the replay socket answered. `odd`: reason → count of unreadable replies. `newest_s`: the latest time stamp, in Unix time."""

    start: int
    replies: int = 0
    has_ended: bool = False
    odd: dict[str, int] = {}
    is_cut: bool = False
    newest_s: float | None = None
    error: str = ""


class ObservedSockets(Struct, frozen=True):
    """The sockets of one stream. None: not observed, or there is no such socket."""

    events: Handshake | None = None
    sample: EventSample | None = None
    replay: Handshake | None = None
    replied: ReplaySample | None = None


class AdvertisedSource(Struct, frozen=True):
    """Where the engine says that a rank publishes. `endpoint`: None if it says that it publishes nothing."""

    rank: int | None
    endpoint: str | None
    replay: str | None = None


class ObservedEngine(Struct, frozen=True):
    """An engine's API.

    `models`: names that it serves; `adapters`: those of them that are LoRA adapters. `tokens`: of the prompt. `sources`: where it says that it
    publishes. Fields are None if the engine does not say.
    """

    base: str
    health: Reply
    version: str | None = None
    metrics: Reply | None = None
    prefix_caching: bool | None = None
    block_size: int | None = None
    models: list[str] | None = None
    adapters: list[str] = []
    has_tokenize: bool | None = None
    context_max: int | None = None
    tokens: list[int] | None = None
    sources: list[AdvertisedSource] | None = None
