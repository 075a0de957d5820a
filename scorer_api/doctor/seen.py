"""What was seen, before anybody judges it. Everything here came over a network: nothing of it is sure to be true, or to fit together."""

from msgspec import UNSET, Struct, UnsetType

from scorer_api.doctor.reply import Reply


class StreamSeen(Struct, frozen=True):
    """A stream as the service shows it; fields that a newer service has are passed over. `events` is UNSET where an older one does not say."""

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


class PodSeen(Struct, frozen=True):
    """A pod as the service shows it."""

    pod: str
    model: str
    streams: list[StreamSeen] = []
    http: str | None = None

    @property
    def is_connected(self) -> bool:
        return any(stream.connected for stream in self.streams)

    @property
    def block_sizes(self) -> set[int]:
        return {stream.block_size for stream in self.streams if stream.block_size is not None}


class PodsSeen(Struct, frozen=True):
    """The answer of /v1/pods."""

    pods: list[PodSeen]


class ServiceSeen(Struct, frozen=True):
    """What the service said. `pods` is None where it did not say which there are. `wants_tls`: asked without TLS it says nothing, with it does."""

    health: Reply
    ready: Reply
    metrics: Reply
    listed: Reply
    pods: list[PodSeen] | None
    wants_tls: bool = False


class Handshake(Struct, frozen=True):
    """What a socket says of itself when it is connected to.

    `address`: an address that the endpoint's name has, with its port, once it was connected to. `is_refused`: there is a machine, and nobody
    listens. `is_zmq`: it speaks ZMQ, and then `socket_type` and `mechanism` are what it says. `heard`: what it said, where it is not.
    """

    address: str | None = None
    error: str = ""
    is_refused: bool = False
    is_zmq: bool = False
    socket_type: str | None = None
    mechanism: str | None = None
    heard: bytes = b""


class Heard(Struct):
    """What came at the events endpoint meanwhile. `skew_s`: the engine's clock less ours. `undecodable`, `refused`: reason → how many."""

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


class Replied(Struct):
    """What the replay socket answered. `newest_s`: the highest time stamp in it, in Unix time."""

    start: int
    replies: int = 0
    has_ended: bool = False
    odd: dict[str, int] = {}
    is_cut: bool = False
    newest_s: float | None = None
    error: str = ""


class SocketsSeen(Struct, frozen=True):
    """The sockets of one stream. None: it was not asked, or has no such socket."""

    events: Handshake | None = None
    heard: Heard | None = None
    replay: Handshake | None = None
    replied: Replied | None = None


class Source(Struct, frozen=True):
    """Where an engine says that a rank's events and replays are; `endpoint` None: it says that it publishes none."""

    rank: int | None
    endpoint: str | None
    replay: str | None = None


class EngineSeen(Struct, frozen=True):
    """An engine's API. `prefix_caching`, `block_size`: as it says itself. `models`: names that it serves, `adapters` those that are LoRA adapters.

    `sources`: None where it does not say. `tokens`: of the prompt.
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
    sources: list[Source] | None = None
