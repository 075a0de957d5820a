"""A Redis Cluster as one client: each command goes to the node that has the slot of its key.

    command ──▶ slot of its key ──▶ node, by CLUSTER SLOTS ──▶ a plain client of that node
                                      ▲ MOVED: from now on another one     ASK: another one, this once
                                      └ where a node does not answer the others are asked which slots lie where, beside all calls

A command is sent again only where a node said that it was not carried out, a call waits for the nodes that it is about and no others, and what went
wrong with some commands of a pipeline replaces their answers. docs/explanation/architecture.md says why the library's client is not used.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import redis.asyncio
from msgspec import Struct
from redis.asyncio.client import Pipeline
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
"""Schemes of URLs that name nodes of a Cluster, and those of a node's own."""
SLOTS = 16384
PORT = 6379
# A slot that moves may be redirected twice; more shows nodes that do not agree.
REDIRECTIONS_MAX = 5
# Which slots lie where is asked no more often than this.
REFRESH_PAUSE_S = 0.1
KEYED = frozenset(
    {"EXISTS", "GET", "HDEL", "HGET", "HGETALL", "HLEN", "HSCAN", "HSET", "PEXPIRE", "SET", "ZCOUNT", "ZRANGE", "ZRANGEBYSCORE", "ZREM", "ZSCORE"}
)
"""Commands whose first argument is a key, …"""
KEYLESS = frozenset({"INFO", "PING", "TIME"})
"""… and those that have none: they are about a server."""
# Where what belongs to no model lies, see `keyspace`: that server is asked about itself.
HOME = "{directory}"

Node: TypeAlias = tuple[str, int]
"""Host and port."""
Command: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments for Redis, and options for the library."""


class ClusterUrl(Struct, frozen=True):
    """What a URL says: the nodes to begin with, and how to speak to each node of the Cluster."""

    scheme: str
    credentials: str
    nodes: tuple[Node, ...]
    query: str

    def of(self, node: Node) -> str:
        """The URL of one node."""
        host, port = node
        return f"{self.scheme}://{self.credentials}{f'[{host}]' if ':' in host else host}:{port}/0{self.query}"


def parse_url(url: str) -> ClusterUrl:
    """From redis+cluster://user:password@host:port,host:port?options. Raises ValueError."""
    parts = urlsplit(url)
    before, at, hosts = parts.netloc.rpartition("@")
    if parts.path not in ("", "/", "/0"):
        raise ValueError("a Cluster has one database")
    if parts.fragment:
        raise ValueError("# belongs to no such URL")
    nodes = tuple(dict.fromkeys(_node(named) for named in hosts.split(",")))
    return ClusterUrl(SCHEMES[parts.scheme], before + at, nodes, f"?{parts.query}" if parts.query else "")


def _node(named: str) -> Node:
    parts = urlsplit(f"//{named}")
    if not parts.hostname or named.endswith(":"):
        raise ValueError("a host is missing, or its port")
    return parts.hostname, parts.port or PORT


def slot_of_key(key: str | bytes) -> int:
    """The slot, 0 to 16,383, in which a key lies."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def _key_of(arguments: Sequence[Any]) -> str | bytes | None:
    """The first key of a command; None for one that has none. All keys of one command lie in one slot, see `keyspace`."""
    key: str | bytes
    match arguments[0]:
        case "EVAL" | "EVALSHA":
            key = arguments[3]
        case "XREAD":
            key = arguments[arguments.index(b"STREAMS") + 1]
        case name if name in KEYLESS:
            return None
        case name:
            assert name in KEYED, f"the position of the key in {name} is not known"
            key = arguments[1]
    return key


def _slots_of(commands: Sequence[Command]) -> list[int]:
    """Of commands that are sent together; one without a key goes where the first goes that has one, or else to the directory's node."""
    keys = [_key_of(arguments) for arguments, _ in commands]
    first = next((key for key in keys if key is not None), HOME)
    return [slot_of_key(first if key is None else key) for key in keys]


class Cluster(redis.asyncio.Redis):
    """A client that connects when it is first used. `connect`: makes the client of one node, from its URL.

    The commands that it knows, see KEYED and KEYLESS, are those that the store uses.
    """

    def __init__(self, url: ClusterUrl, connect: Callable[[str], redis.asyncio.Redis]) -> None:
        """Raises what `connect` does for a URL that cannot be used."""
        super().__init__()  # for the commands' methods: its own pool never connects
        self._url = url
        self._connect = connect
        self._clients: dict[Node, redis.asyncio.Redis] = {}
        self._owners: list[Node | None] = [None] * SLOTS
        self._nodes: dict[Node, float] = dict.fromkeys(url.nodes, float("-inf"))
        """Each node, and when it last failed to answer."""
        self._asked: dict[int, Node] = {}
        """Slots that are on the move, and the node that gave the last answer instead of the one that has it."""
        self._is_known = self._is_closed = False
        self._client(url.nodes[0])  # so that an option that cannot be used is found here
        self._refreshing: asyncio.Task[RedisError | None] | None = None
        self._refreshed_s = float("-inf")

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        self._is_closed = True
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        for client in self._clients.values():
            await client.aclose()
        await super().aclose(close_connection_pool)

    # Sending

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Raises redis.exceptions.RedisError."""
        (answer,) = await self.send([(arguments, options)])
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> "ClusterPipeline":
        assert not transaction, "a transaction would have to stay in one slot: that is what scripts are for"
        return ClusterPipeline(self)

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, in order; a failed command has its error as its answer. Those of one slot are carried out in order.

        Raises redis.exceptions.RedisError where nothing was sent, since no node says which slots lie where.
        """
        slots = _slots_of(commands)
        if not self._is_known:
            await self._know()
        answers: list[Any] = [None] * len(commands)
        due: dict[int, tuple[Node, bool]] = {}
        for position, slot in enumerate(slots):
            owner = self._owners[slot]
            if owner is None:
                answers[position] = ClusterDownError(f"CLUSTERDOWN no node has slot {slot}")
                self._begin_refresh()
            else:
                due[position] = owner, False
        for _ in range(1 + REDIRECTIONS_MAX):
            found = await self._send_all(commands, due)
            senders, due = due, {}
            for position, answer in found.items():
                answers[position] = answer
                further = self._note(slots[position], *senders[position], answer)
                if further is not None:
                    due[position] = further
            if not due:
                break
        return answers

    async def _send_all(self, commands: Sequence[Command], due: Mapping[int, tuple[Node, bool]]) -> dict[int, Any]:
        """Each to its node, all nodes at once. `due`: position → node, and whether it is only asked this once."""
        by_node: dict[Node, list[int]] = {}
        for position, (node, _) in sorted(due.items()):
            by_node.setdefault(node, []).append(position)
        sending = [self._send_to(node, [(commands[position], due[position][1]) for position in positions]) for node, positions in by_node.items()]
        answered = [await sending[0]] if len(sending) == 1 else await asyncio.gather(*sending)
        return {
            position: answer
            for positions, found in zip(by_node.values(), answered, strict=True)
            for position, answer in zip(positions, found, strict=True)
        }

    async def _send_to(self, node: Node, batch: Sequence[tuple[Command, bool]]) -> list[Any]:
        client: Any = self._client(node)  # the library's types leave `execute_command` out
        try:
            if len(batch) == 1 and not batch[0][1]:
                (((arguments, options), _),) = batch
                return [await client.execute_command(*arguments, **options)]
            pipeline = client.pipeline(transaction=False)
            for (arguments, options), is_asking in batch:
                if is_asking:
                    pipeline.execute_command("ASKING")
                pipeline.execute_command(*arguments, **options)
            answers = iter(await pipeline.execute(raise_on_error=False))
        except RedisError as error:
            return [error] * len(batch)
        found = []
        for _, is_asking in batch:
            if is_asking:
                next(answers)
            found.append(next(answers))
        return found

    def _note(self, slot: int, node: Node, was_asked: bool, answer: Any) -> tuple[Node, bool] | None:
        """What an answer says of where slots lie. Returns where to send the command now, if it was not carried out for that reason."""
        if isinstance(answer, AskError):  # MOVED is one too, for the library
            further = (answer.host or node[0], int(answer.port))
            if not isinstance(answer, MovedError):
                return further, True
            self._owners[slot] = further
            self._asked.pop(slot, None)
            self._nodes.setdefault(further, float("-inf"))
            self._begin_refresh()
            return further, False
        if isinstance(answer, RedisConnectionError | RedisTimeoutError | ClusterDownError):
            self._nodes[node] = time.monotonic()
            self._begin_refresh()
        elif was_asked:
            self._asked[slot] = node
        else:
            self._asked.pop(slot, None)
        return None

    # Which slots lie where

    def node_of(self, key: str) -> str:
        """The node that answers for a key, or that would be asked first: each has its own clock. Empty where none is known."""
        slot = slot_of_key(key)
        node = self._asked.get(slot) or self._owners[slot]
        return "" if node is None else f"{node[0]}:{node[1]}"

    def _client(self, node: Node) -> redis.asyncio.Redis:
        client = self._clients.get(node)
        if client is None:
            client = self._clients[node] = self._connect(self._url.of(node))
        return client

    def _begin_refresh(self) -> asyncio.Task[RedisError | None]:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(), name="slots of the cluster")
        return self._refreshing

    async def _know(self) -> None:
        """Raises redis.exceptions.RedisError."""
        error = await asyncio.shield(self._begin_refresh())
        if error is not None:
            raise error

    async def _refresh(self) -> RedisError | None:
        """Ask node after node, those first that did not fail of late. Returns an error where none says it."""
        await asyncio.sleep(self._refreshed_s + REFRESH_PAUSE_S - time.monotonic())
        self._refreshed_s = time.monotonic()
        failure: RedisError = RedisConnectionError("no node of the cluster is known")
        for node in sorted(self._nodes, key=lambda node: (self._nodes[node], node)):
            if self._is_closed:  # the library may swallow a cancellation
                break
            client: Any = self._client(node)
            try:
                self._learn(node, await client.execute_command("CLUSTER", "SLOTS"))
            except RedisError as error:
                self._nodes[node] = time.monotonic()
                failure = error
            else:
                await self._forget_clients()
                return None
        return failure

    def _learn(self, asked: Node, ranges: Sequence[Any]) -> None:
        """What CLUSTER SLOTS said: first slot, last slot, master, replicas; each node is host, port, and more. Raises ClusterDownError."""
        if not ranges:
            raise ClusterDownError("CLUSTERDOWN no node has any slot")
        owners: list[Node | None] = [None] * SLOTS
        nodes: dict[Node, None] = dict.fromkeys(self._url.nodes)
        for first, last, *members in ranges:
            # One that names no host means the one that we reached it by.
            named = [((host or b"").decode() or asked[0], int(port)) for host, port, *_ in members]
            owners[first : last + 1] = [named[0]] * (last + 1 - first)
            nodes.update(dict.fromkeys(named))
        self._owners = owners
        self._asked = {slot: node for slot, node in self._asked.items() if owners[slot] != node}
        self._nodes = {node: self._nodes.get(node, float("-inf")) for node in nodes}
        self._is_known = True

    async def _forget_clients(self) -> None:
        """Those of nodes that are no part of the Cluster any more."""
        for node in self._clients.keys() - self._nodes.keys():
            await self._clients.pop(node).aclose()


class ClusterPipeline(Pipeline):
    """Commands that are sent together, to each node those that are its own."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, transaction=False, shard_hint=None)
        self._cluster = cluster
        self._commands: list[Command] = []

    def execute_command(self, *arguments: Any, **options: Any) -> Any:
        self._commands.append((arguments, options))
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The answers, in order. `raise_on_error`: raise the first error, else it is returned as that command's answer."""
        commands, self._commands = self._commands, []
        if not commands:
            return []
        answers = await self._cluster.send(commands)
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, RedisError):
                    raise answer
        return answers
