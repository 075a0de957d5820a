"""How Redis is, as far as it says itself, and what of a namespace lies in it."""

from msgspec import Struct


class ModelCondition(Struct, frozen=True):
    """The streams of one model. `unowned`: those that no owner confirms, or whose lease is free."""

    model: str
    streams: int
    unowned: list[str]


class RedisCondition(Struct, frozen=True):
    """`failure`: why nothing more is known: unreachable, loading, refusing; `error` in words. `ping_s`: the shortest of a few round trips.

    `skew_s`: its clock less ours. `members`: indexers that count as alive. `pods`: those registered over HTTP. `layouts`: versions of other layouts
    of keys that are in use under the namespace. `shards`: into how many each model is split. `is_empty`: nothing of the namespace is there.
    """

    failure: str | None = None
    error: str = ""
    version: str = ""
    server: str = "redis"
    policy: str = ""
    used_bytes: int = 0
    bytes_max: int = 0
    is_loading: bool = False
    role: str = "master"
    has_write_error: bool = False
    ping_s: float = 0.0
    skew_s: float = 0.0
    members: int = 0
    pods: int = 0
    models: list[ModelCondition] = []
    layouts: list[int] = []
    shards: int = 1
    is_empty: bool = False
