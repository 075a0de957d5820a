"""A real Redis Cluster for tests: three masters with a replica each, from the same binary as tests/redis_server.py, and what happens to Clusters.

with RedisCluster() as cluster:
    cluster.client_of("a").set("a", 1)
    cluster.kill_master_of("a")
    cluster.wait_promoted("a", before)
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import redis
from redis.crc import key_slot

from tests.ports import free_port, is_free
from tests.redis_server import RedisServer
from tests.waiting import wait_until

SLOTS = 16384
MASTERS = 3
NODE_TIMEOUT_MS = 1500
# The bus takes the port + 10,000; both have to lie below the ephemeral ports.
BUS = 10_000
LOWEST, HIGHEST = 20_000, 22_700
BUILD_S = 60.0
MIGRATED_AT_ONCE = 10


class Member(RedisServer):
    """One node. `id`: its name in the Cluster."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"cluster_enabled": "yes", "cluster_config_file": "nodes.conf", "cluster_node_timeout": str(NODE_TIMEOUT_MS), **options})
        self.id = ""
        self.is_frozen = False

    def _free_port(self) -> int:
        while not is_free((port := free_port(LOWEST, HIGHEST)) + BUS):
            pass
        return port

    @property
    def answers(self) -> bool:
        """Whether it can be asked anything."""
        return self.is_running and not self.is_frozen

    def freeze(self) -> None:
        super().freeze()
        self.is_frozen = True

    def thaw(self) -> None:
        super().thaw()
        self.is_frozen = False

    def ask(self, *words: Any) -> Any:
        """One command's answer."""
        with self._asking() as client:
            return client.execute_command(*words)

    def says(self, field: str) -> str:
        """A field of CLUSTER INFO."""
        text = self.ask("CLUSTER INFO")
        return str(text[field] if isinstance(text, dict) else dict(line.split(":") for line in text.decode().split())[field])

    def role(self) -> str:
        """master or slave."""
        return str(self.ask("ROLE")[0], "utf-8")


class RedisCluster:
    """`with RedisCluster() as cluster:` the slots are spread evenly over the masters. Options are those of redis.conf, as with RedisServer."""

    def __init__(self, **options: str) -> None:
        self.masters = [Member(**options) for _ in range(MASTERS)]
        """Those that were masters in the beginning, …"""
        self.replicas = [Member(**options) for _ in range(MASTERS)]
        """… and the replica of each of these."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for member in self.members:
                stack.enter_context(member)
            self._join()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def members(self) -> list[Member]:
        return [*self.masters, *self.replicas]

    @property
    def living(self) -> list[Member]:
        """Those that answer."""
        return [member for member in self.members if member.answers]

    @property
    def url(self) -> str:
        """It names the first masters."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{master.port}' for master in self.masters)}"

    def _join(self) -> None:
        first = self.masters[0]
        for member in self.members:
            member.id = member.ask("CLUSTER MYID").decode()
        for epoch, master in enumerate(self.masters, 1):
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
            start, stop = ((epoch - 1) * SLOTS // MASTERS, epoch * SLOTS // MASTERS)
            master.ask("CLUSTER", "ADDSLOTS", *range(start, stop))
        for member in self.members[1:]:
            member.ask("CLUSTER", "MEET", "127.0.0.1", first.port)
        known = [master.id for master in self.masters]

        def know_all() -> bool:
            return all(all(name in self._nodes(member) for name in known) for member in self.members)

        wait_until(know_all, BUILD_S, "all nodes to know the masters")
        for master, replica in zip(self.masters, self.replicas, strict=True):
            replica.ask("CLUSTER", "REPLICATE", master.id)
        self.wait_well(BUILD_S)
        wait_until(lambda: all(b"connected" in replica.ask("ROLE") for replica in self.replicas), BUILD_S, "the replicas to be connected")

    @staticmethod
    def _nodes(member: Member) -> str:
        text = member.ask("CLUSTER", "NODES")
        return str(text if isinstance(text, str) else text.decode())

    def wait_well(self, timeout_s: float = 30.0) -> None:
        """Wait until every living node says that all slots are served, and by whom alike."""

        def views() -> list[tuple[str, list[Any]]]:
            return [
                (member.says("cluster_state"), sorted((entry[0], entry[1], entry[2][2]) for entry in member.ask("CLUSTER", "SLOTS")))
                for member in self.living
            ]

        def is_well() -> bool:
            found = views()
            return all(state == "ok" and slots == found[0][1] for state, slots in found)

        wait_until(is_well, timeout_s, lambda: f"the nodes to agree that all is well: {views()}")

    # Where keys are

    def member(self, name: str) -> Member:
        """By its name in the Cluster."""
        return next(member for member in self.members if member.id == name)

    def owner_of(self, key: str) -> Member:
        """The node that has a key's slot, as most of the living see it."""
        slot, votes = key_slot(key.encode()), []
        for member in self.living:
            for first, last, master, *_ in member.ask("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    votes.append(master[2].decode())
        return self.member(max(sorted(set(votes)), key=votes.count))

    def replica_of(self, member: Member) -> Member:
        """The living replica of a node."""
        lines = [line.split() for line in self._nodes(member).splitlines()]
        return next(other for line in lines if line[3] == member.id and (other := self.member(line[0])).answers)

    def client_of(self, key: str) -> redis.Redis:
        """A connection to the node that has the key now."""
        return self.owner_of(key).client()

    # What happens to it

    def wait_promoted(self, key: str, former: Member, timeout_s: float = 60.0) -> Member:
        """Wait until another node than the former one has the key's slot, and all is well. Returns it."""
        wait_until(lambda: self.owner_of(key) is not former, timeout_s, "a replica to be promoted")
        self.wait_well(timeout_s)
        return self.owner_of(key)

    def kill_owner_of(self, key: str) -> Member:
        """SIGKILL for the node that has a key. Returns it."""
        member = self.owner_of(key)
        member.kill()
        return member

    def other_than(self, *members: Member) -> Member:
        """A living master that is none of these."""
        return next(member for member in self.living if member not in members and member.role() == "master")

    def migrate(self, key: str, target: Member, between: Callable[[], object] | None = None, keep_open_s: float = 0.0) -> None:
        """Move the slot of a key with all that lies in it, some keys at a time; `between`: called when about half of them have moved.

        `keep_open_s`: how long the slot stays on the move at the least.
        """
        slot, source = key_slot(key.encode()), self.owner_of(key)
        until_s = time.monotonic() + keep_open_s
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        half = source.ask("CLUSTER", "COUNTKEYSINSLOT", slot) // 2
        moved = 0
        while True:
            if moved >= half and between is not None:
                between()
                between = None
            names = source.ask("CLUSTER", "GETKEYSINSLOT", slot, MIGRATED_AT_ONCE if moved >= half else max(1, min(MIGRATED_AT_ONCE, half - moved)))
            if names:
                source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", *names)
                moved += len(names)
            elif time.monotonic() >= until_s:
                break
            else:
                time.sleep(0.01)
        for member in (target, source):
            member.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)
        for member in self.living:
            if member.role() == "master" and member not in (source, target):
                member.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    # What it holds, as RedisServer says it

    def client(self, **options: Any) -> redis.cluster.RedisCluster:
        """The library's client of the whole, for the tests' own questions."""
        client = redis.cluster.RedisCluster("127.0.0.1", self.living[0].port, **options)
        self._stack.callback(client.close)
        return client

    def keys(self, prefix: str = "") -> list[bytes]:
        """The names of all keys that begin with this, sorted."""
        return sorted({name for member in self.living if member.role() == "master" for name in member.keys(prefix)})

    def wait_empty(self, timeout_s: float = 30.0, prefix: str = "") -> None:
        """Wait until no key with this prefix is left."""
        until_s = time.monotonic() + timeout_s
        for member in self.living:
            if member.role() == "master":
                member.wait_empty(max(1.0, until_s - time.monotonic()), prefix)

    def log(self) -> str:
        return "\n".join(line for member in self.members for line in (f"node {member.port}:", *member.log().splitlines()[-8:]))
