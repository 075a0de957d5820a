"""Every name in Redis, made in this one place.

    {namespace}:2:{directory}:pods          HASH    pod → its specs as JSON: the pods that were registered over HTTP
    {namespace}:2:{directory}:marks         HASH    pod → which registration of it that is, a random value
    {namespace}:2:{directory}:specs         HASH    the same with keys that older replicas cannot read, for pods that have any: see `registry`
    {namespace}:2:{directory}:forgotten     ZSET    pod → until when it stays deleted, so that no indexer adds it again from its flags
    {namespace}:2:{directory}:members       ZSET    indexer → until when it counts as alive
    {namespace}:2:{directory}:models        ZSET    model → until when it is worth looking at
    {namespace}:2:{directory}:incarnation   STRING  distinguishes this data from that of a Redis that lost everything
    {namespace}:2:{model}:log               STREAM  the ordered changes of one model; each entry has one field, `e`, see `records`
    {namespace}:2:{model}:streams           ZSET    stream → trusted until
    {namespace}:2:{model}:incarnation       STRING  the same as above, for what a model's slot holds
    {namespace}:2:{model}:lease:{stream}    HASH    owner, want: who has the stream, and who would like to
    {namespace}:2:{model}:state:{stream}    HASH    gen, fence, number, lengths, head, status: see `records`
    {namespace}:2:{model}:load:{pod}        STRING  when the pod's load was measured, and the load, see `published_loads`
    {namespace}:2:{model}:{part}:{stream}:{generation}  HASH  engine hash → block, for each of PARTS

All times are Redis's own, in milliseconds. `{model}` is a digest of the model's name in braces, and `{directory}` is literal: whatever is
changed by one script lies in one slot of a Cluster. `1` is the version of this layout.
"""

import re

from msgspec import Struct
from xxhash import xxh3_128_hexdigest

from indexer.core.events import Tier
from indexer.core.names import StreamKey
from indexer.errors import SettingError

LAYOUT = 2
NAMESPACE = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

PARTS = (*(tier.word for tier in Tier), "parked", "removed")
"""What a stream's blocks lie in: a hash per tier, one for blocks that wait for their parent, one for removed ones that a lower tier may yet name."""


def check_namespace(namespace: str, source: str) -> None:
    """Raises SettingError."""
    if NAMESPACE.fullmatch(namespace) is None:
        raise SettingError(source, namespace, "should be 1 to 64 letters, digits and any of _ . : -")


def stream_id(stream: StreamKey) -> str:
    """The stream's name inside its model: rank, colon, pod."""
    return f"{stream.rank}:{stream.pod}"


def stream_of(model: str, name: str | bytes) -> StreamKey:
    """What `stream_id` named."""
    text = name.decode() if isinstance(name, bytes) else name
    rank, _, pod = text.partition(":")
    return StreamKey(model, pod, int(rank))


def text_of(name: bytes) -> str:
    """A name in Redis. What is no UTF-8 was not written by us, and fits nothing."""
    return name.decode(errors="replace")


def incarnation_beside(key: str) -> str:
    """The incarnation that lies in the same slot of a Cluster as one of these keys: that of the model, or of the directory."""
    return key[: key.index("}") + 2] + "incarnation"


class Directory(Struct, frozen=True):
    """The keys that belong to no model."""

    pods: str
    specs: str
    marks: str
    forgotten: str
    members: str
    models: str
    incarnation: str


class ModelKeys(Struct, frozen=True):
    """The keys of one model."""

    prefix: str
    log: str
    streams: str
    incarnation: str

    def lease(self, stream: StreamKey) -> str:
        return f"{self.prefix}lease:{stream_id(stream)}"

    def state(self, stream: StreamKey) -> str:
        return f"{self.prefix}state:{stream_id(stream)}"

    def load(self, pod: str) -> str:
        return f"{self.prefix}load:{pod}"

    def parts(self, stream: StreamKey, generation: int) -> list[str]:
        """The hashes of a generation's blocks, in the order of PARTS."""
        return [f"{self.prefix}{part}:{stream_id(stream)}:{generation:016x}" for part in PARTS]


class Keyspace:
    """`Keyspace("kvi").model("my/model").log`."""

    def __init__(self, namespace: str) -> None:
        prefix = f"{namespace}:{LAYOUT}:{{directory}}:"
        self.namespace = namespace
        self.directory = Directory(*(prefix + name for name in Directory.__struct_fields__))
        self._models: dict[str, ModelKeys] = {}

    def model(self, model: str) -> ModelKeys:
        """The keys of this model."""
        keys = self._models.get(model)
        if keys is None:
            prefix = f"{self.namespace}:{LAYOUT}:{{{xxh3_128_hexdigest(model.encode())}}}:"
            keys = self._models[model] = ModelKeys(prefix, prefix + "log", prefix + "streams", prefix + "incarnation")
        return keys
