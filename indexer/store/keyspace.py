"""Every name in Redis, made in this one place.

    {namespace}:2:{directory}:pods          HASH    pod → its specs as JSON: the pods that were registered over HTTP
    {namespace}:2:{directory}:marks         HASH    pod → which registration of it that is, a random value
    {namespace}:2:{directory}:specs         HASH    the same with keys that older replicas cannot read, for pods that have any: see `registry`
    {namespace}:2:{directory}:forgotten     ZSET    pod → until when it stays deleted, so that no indexer adds it again from its flags
    {namespace}:2:{directory}:members       ZSET    indexer → until when it counts as alive
    {namespace}:2:{directory}:models        ZSET    model → until when it is worth looking at
    {namespace}:2:{directory}:incarnation   STRING  distinguishes this data from that of a Redis that lost everything
    {namespace}:2:{directory}:shards        STRING  the number of shards of each model; missing for 1
    {namespace}:2:{model}:log               STREAM  the ordered changes of one shard of a model; each entry has one field, `e`, see `records`
    {namespace}:2:{model}:streams           ZSET    stream → trusted until
    {namespace}:2:{model}:incarnation       STRING  the same as above, for what the shard's slot holds
    {namespace}:2:{model}:lease:{stream}    HASH    owner, want: who has the stream, and who would like to
    {namespace}:2:{model}:state:{stream}    HASH    gen, fence, number, lengths, head, status: see `records`
    {namespace}:2:{model}:load:{pod}        STRING  when the pod's load was measured, and the load, see `published_loads`
    {namespace}:2:{model}:{part}:{stream}:{generation}  HASH  engine hash → block, for each of PARTS

All times are Redis's own, in milliseconds. `{model}` stands for one shard of a model: a digest of the model's name in braces, and behind it, where
there are several shards, their number, that of the shard and a further one, see `_tag`. `{directory}` is literal. So whatever is changed by one
script lies in one slot of a Cluster. `2` is the version of this layout.
"""

import re
from binascii import crc_hqx
from itertools import count

from msgspec import Struct
from xxhash import xxh3_64_intdigest, xxh3_128_hexdigest

from indexer.core.events import Tier
from indexer.core.names import StreamKey
from indexer.errors import SettingError

LAYOUT = 2
SHARDS_MAX = 64
SHARDS = re.compile(rb"[0-9]{1,2}")
# Slots of a Cluster.
SLOTS = 16_384
# A shard's slot lies at most so far behind the place that makes a model's shards equally far apart.
SLOTS_APART_MAX = 64
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


def shard_of(pod: str, shards: int) -> int:
    """In which of so many shards the streams of a pod lie, all ranks together, and its load beside them."""
    return xxh3_64_intdigest(pod.encode()) % shards


def shards_of(text: bytes | None) -> int:
    """What is written as the number of shards. What is no such number was not written by us, and counts as if it were missing."""
    return int(text) if text is not None and SHARDS.fullmatch(text) and 1 <= int(text) <= SHARDS_MAX else 1


def text_of(name: bytes) -> str:
    """A name in Redis. What is no UTF-8 was not written by us, and fits nothing."""
    return name.decode(errors="replace")


def incarnation_beside(key: str) -> str:
    """The incarnation that lies in the same slot of a Cluster as one of these keys: that of the shard, or of the directory."""
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
    shards: str


class ModelKeys(Struct, frozen=True):
    """The keys of one shard of a model; of all of it where there is one shard."""

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


class Shard(Struct, frozen=True):
    """A part of a model's data. Each lies in one slot of a Cluster, and has a log of its own."""

    model: str
    number: int = 0


class Keyspace:
    """`Keyspace("kvi").model("my/model").log`. `shards`: into how many each model is split."""

    def __init__(self, namespace: str, shards: int = 1) -> None:
        prefix = f"{namespace}:{LAYOUT}:{{directory}}:"
        self.namespace = namespace
        self.shards = shards
        self.directory = Directory(*(prefix + name for name in Directory.__struct_fields__))
        self._keys: dict[tuple[str, int, int], ModelKeys] = {}

    def shard(self, stream: StreamKey) -> Shard:
        """Where a stream lies."""
        return Shard(stream.model, shard_of(stream.pod, self.shards))

    def shards_of(self, model: str) -> list[Shard]:
        """All of a model."""
        return [Shard(model, number) for number in range(self.shards)]

    def of(self, stream: StreamKey) -> ModelKeys:
        """The keys of the shard in which a stream lies."""
        return self.of_pod(stream.model, stream.pod)

    def of_pod(self, model: str, pod: str) -> ModelKeys:
        """The keys of the shard in which a pod's streams and its load lie."""
        return self.model(model, shard_of(pod, self.shards))

    def model(self, model: str, shard: int = 0) -> ModelKeys:
        """The keys of one shard of this model."""
        keys = self._keys.get((model, self.shards, shard))
        if keys is None:
            prefix = f"{self.namespace}:{LAYOUT}:{{{_tag(model, self.shards, shard)}}}:"
            keys = self._keys[model, self.shards, shard] = ModelKeys(prefix, prefix + "log", prefix + "streams", prefix + "incarnation")
        return keys


def _tag(model: str, shards: int, shard: int) -> str:
    """The hash tag of a shard's keys, by which a Cluster chooses the slot.

    Nodes have ranges of slots as a rule, so the slots of a model's shards lie nearly as far apart as that many can.
    """
    digest = xxh3_128_hexdigest(model.encode())
    if shards == 1:
        return digest
    place = crc_hqx(digest.encode(), 0) + shard * SLOTS // shards
    tag = f"{digest}:{shards}:{shard}:"
    before = crc_hqx(tag.encode(), 0)
    return tag + str(next(number for number in count() if (crc_hqx(b"%d" % number, before) - place) % SLOTS < SLOTS_APART_MAX))
