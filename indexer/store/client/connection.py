"""Connecting to Redis, and what its errors mean."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from indexer.errors import SettingError
from indexer.masking import masked
from indexer.store.client import cluster, sentinel
from indexer.store.client.cluster import Cluster

Client: TypeAlias = "redis.asyncio.Redis"

T = TypeVar("T")
# What uvloop raises where a connection is closed between its opening and the first command; the library lets it through.
CLOSED_BY_PEER = "the handler is closed"
# Of one process to one server. The library takes a pool that is used up for a server that is away, and its own limit is 100. In a Cluster each
# model's log takes one; otherwise what runs at a time is bounded where it starts.
CONNECTIONS_MAX = 4_096
SCHEMES = ("redis", "rediss", "unix", *sentinel.SCHEMES, *cluster.SCHEMES)
SHAPE = "it should be redis://user:password@host:port/database, with / @ : # ? and % in the password written as %2F %40 %3A %23 %3F and %25"
CLUSTER_SHAPE = SHAPE.replace("redis://user:password@host:port/database", "redis+cluster://user:password@host:port,host:port")
SENTINEL_SHAPE = SHAPE.replace("redis://user:password@host:port/database", sentinel.SHAPE)


def connect(url: str, timeout_s: float) -> Client:
    """A client of this Redis, which connects when it is first used. No command waits longer than `timeout_s`, none is sent twice.

    Raises SettingError for a URL that cannot be used.
    """
    try:
        if is_cluster(url):
            return Cluster(cluster.parse_url(url), lambda node: _connect(node, timeout_s))
        if sentinel.is_sentinel(url):
            return sentinel.connect(url, timeout_s, {"socket_keepalive": True, **_options(timeout_s)})
        return _connect(url, timeout_s)
    except (ValueError, TypeError):
        # What the error says may be a piece of the password.
        raise SettingError("--redis", masked(url), f"cannot be used: {_shape_of(url)}") from None


def _connect(url: str, timeout_s: float) -> redis.asyncio.Redis:
    """A client of one server. Raises ValueError, TypeError."""
    # A Unix socket has no keepalive.
    keeps_alive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    return redis.asyncio.Redis.from_url(url, **keeps_alive, **_options(timeout_s))


def _options(timeout_s: float) -> dict[str, Any]:
    """Of every connection."""
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "max_connections": CONNECTIONS_MAX,
        "protocol": 2,
    }


def _shape_of(url: str) -> str:
    """What a URL like this one should be."""
    if sentinel.is_sentinel(url):
        return SENTINEL_SHAPE
    return CLUSTER_SHAPE if "+cluster:" in url else SHAPE


def is_cluster(url: str) -> bool:
    return urlsplit(url).scheme in cluster.SCHEMES


# The library's clients are protocols, which `isinstance` takes microseconds for, several times in each call.


def slot_of(client: Client, key: str) -> int:
    """The slot of a Cluster in which a key lies. A Redis that is no Cluster is one slot: it answers as a whole, or not at all."""
    return cluster.slot_of_key(key) if type(client) is Cluster else 0


def node_of(client: Client, key: str) -> str:
    """The node of a Cluster that answers for a key, or the master that Sentinels name: its clock counts. Empty where none is known, and where there
    is one Redis only."""
    if type(client) is sentinel.SentinelClient:
        return f"master {client.server_epoch}"
    return client.node_of(key) if type(client) is Cluster else ""


def server_epoch_of(client: Client) -> int:
    """Counts how often the client's Redis became another server as a whole, whose log goes its own way."""
    return client.server_epoch if type(client) is sentinel.SentinelClient else 0


async def answer_of(asking: Awaitable[T]) -> T:
    """Await what a client was asked for.

    The library sends with asyncio.wait_for, which up to Python 3.11 swallows a cancellation that comes as sending ends; and what it cleans up after
    one may fail. Either way the task would go on as if it had not been cancelled.
    """
    task = asyncio.current_task()
    assert task is not None, "this runs in a task"
    before = task.cancelling()
    try:
        answer = await asking
    except (RedisError, RuntimeError) as error:
        if task.cancelling() > before:
            raise asyncio.CancelledError from error
        if CLOSED_BY_PEER in str(error) and not isinstance(error, RedisError):
            raise RedisConnectionError("Connection closed by server.") from error
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return answer


def check_url(url: str, source: str) -> None:
    """Raises SettingError."""
    try:
        scheme = urlsplit(url).scheme
        if scheme in cluster.SCHEMES:
            cluster.parse_url(url)
    except ValueError:
        raise SettingError(source, masked(url), f"is no URL: {_shape_of(url)}") from None
    if scheme not in SCHEMES:
        raise SettingError(source, masked(url), f"should be a URL that begins with {', '.join(f'{known}://' for known in SCHEMES)}")
    if sentinel.is_sentinel(url):
        try:
            sentinel.parse(url)
        except ValueError as error:
            raise SettingError(source, masked(url), f"{error}: {SENTINEL_SHAPE}") from None


def said(error: RedisError) -> str:
    """What an error says, without what was sent: a Redis that knows no AUTH repeats its arguments."""
    return masked(str(error).partition(", with args beginning with:")[0])


def is_away(error: RedisError) -> bool:
    """Whether Redis did not answer: the command may have been carried out or not."""
    return isinstance(error, RedisConnectionError | RedisTimeoutError)


def why(error: RedisError) -> str:
    """One of: unreachable, full, read-only, short of replicas, refusing."""
    text = str(error)
    # A slot without a node, one whose keys are on their way to another node, and a wait that ended since its slot did.
    if is_away(error) or isinstance(error, ClusterDownError | TryAgainError) or text.startswith("UNBLOCKED"):
        return "unreachable"
    # The library makes some errors a class and takes the code off their text; older servers report an error of a script in a text of their own.
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return "full"
    if isinstance(error, ReadOnlyError) or "READONLY" in text or "MISCONF" in text:
        return "read-only"
    if "NOREPLICAS" in text:
        return "short of replicas"
    return "refusing"
