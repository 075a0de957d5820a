"""A Redis under the eyes of Sentinels: a master, replicas and three Sentinels, all real processes, and the ways to lose the master.

    with WatchedRedis(replicas=1) as redis:
        former = redis.master
        redis.cut_off(former)
        redis.wait_master(other_than=former)

It looks like a tests.redis_server.RedisServer, which is the present master. Sentinels and replicas reach a server as users of their own, so
that it can be cut off from them while everybody else still reaches it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import redis

from tests.redis_server import RedisServer
from tests.waiting import wait_until

SERVICE = "the-index"
SENTINELS = 3
QUORUM = 2
# Short, so that a failover takes some seconds.
DOWN_AFTER_MS = 1000
FAILOVER_TIMEOUT_MS = 6000
SEEN_S = 40.0
# Sentinel waits eight seconds before it makes a replica of a former master that came back.
FAILOVER_S = 60.0
SENTINEL_USER, REPLICA_USER, CLIENTS_USER = "sentinel", "replica", "service"
WORD, CLIENTS_WORD = "watched", "s/e:cr@t"
USERS = {SENTINEL_USER: WORD, REPLICA_USER: WORD, CLIENTS_USER: CLIENTS_WORD}


class WatchedServer(RedisServer):
    """A master or a replica. It has a password: without one a Sentinel whose user is refused would be let in as anybody."""

    def __init__(self, **options: str) -> None:
        options = {"requirepass": CLIENTS_WORD, **options}
        super().__init__(masteruser=REPLICA_USER, masterauth=WORD, repl_diskless_sync="yes", repl_diskless_sync_delay="0", **options)

    def _more_lines(self) -> list[str]:
        return [f"user {user} on >{word} ~* &* +@all" for user, word in USERS.items()]

    @property
    def replication(self) -> dict[str, Any]:
        """What it says of itself; nothing where it does not answer."""
        with suppress(redis.RedisError), self._asking() as client:
            return client.info("replication")
        return {}

    def visitors(self) -> int:
        """How many connections the service has to it."""
        with self._asking() as client:
            return sum(one["user"] == CLIENTS_USER for one in client.client_list())

    def set_cut_off(self, is_cut_off: bool, users: Sequence[str] = (SENTINEL_USER, REPLICA_USER)) -> None:
        """Whether Sentinels and replicas, or one of both, are refused."""
        with self._asking() as client:
            for user in users:
                client.execute_command("ACL", "SETUSER", user, "off" if is_cut_off else "on")
                if is_cut_off:
                    client.execute_command("CLIENT", "KILL", "USER", user)


class SentinelServer(RedisServer):
    """One Sentinel."""

    flags = ("--sentinel",)

    def __init__(self, master: RedisServer, **options: str) -> None:
        super().__init__(**options)
        self._master = master

    def _more_lines(self) -> list[str]:
        lines = [
            f"monitor {SERVICE} 127.0.0.1 {self._master.port} {QUORUM}",
            f"down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            f"failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}",
            f"parallel-syncs {SERVICE} 2",
            f"auth-user {SERVICE} {SENTINEL_USER}",
            f"auth-pass {SERVICE} {WORD}",
        ]
        if self.password:
            lines.append(f"sentinel-pass {self.password}")
        return [f"sentinel {line}" for line in lines]

    def facts(self, subject: str) -> Any:
        """What it says of `master`, `replicas` or `sentinels`."""
        with self._asking() as client:
            answer = client.execute_command("SENTINEL", subject.upper(), SERVICE)
        return answer

    def named_port(self) -> int | None:
        """The port of whom it takes for the master."""
        with suppress(redis.RedisError), self._asking() as client:
            found = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
            return None if found is None else int(found[1])
        return None


class WatchedRedis:
    """`with WatchedRedis(replicas=2) as redis:` see the module. Options are those of each redis-server."""

    def __init__(self, replicas: int = 1, sentinel_word: str | None = None, **options: str) -> None:
        self._replicas = replicas
        self._options = options
        self._sentinel_options = {"requirepass": sentinel_word} if sentinel_word else {}
        self.servers: list[WatchedServer] = []
        self.sentinels: list[SentinelServer] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            first = stack.enter_context(WatchedServer(**self._options))
            self.servers.append(first)
            for _ in range(self._replicas):
                self.servers.append(stack.enter_context(WatchedServer(replicaof=f"127.0.0.1 {first.port}", **self._options)))
            wait_until(lambda: self._has_replicas(first, self._replicas), SEEN_S, "all replicas to follow the master")
            for _ in range(SENTINELS):
                self.sentinels.append(stack.enter_context(SentinelServer(first, **self._sentinel_options)))
            wait_until(self._all_see_all, SEEN_S, "all Sentinels to see one another and the replicas")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _has_replicas(self, server: WatchedServer, count: int) -> bool:
        said = server.replication
        links = [other.replication.get("master_link_status") for other in self.servers if other is not server]
        return int(said.get("connected_slaves", 0)) >= count and links.count("up") >= count

    def _all_see_all(self) -> bool:
        return all(
            _is_master_seen(sentinel) and len(sentinel.facts("replicas")) == self._replicas and len(sentinel.facts("sentinels")) == SENTINELS - 1
            for sentinel in self.sentinels
        )

    # What looks like one server

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        password = next((sentinel.password for sentinel in self.sentinels), None)
        return f"redis+sentinel://{CLIENTS_USER}:{quote(CLIENTS_WORD, '')}@{hosts}/{SERVICE}" + (
            f"?sentinel_password={quote(password, '')}" if password else ""
        )

    def client(self, **options: Any) -> redis.Redis:
        return self.master.client(**options)

    def keys(self, prefix: str = "") -> list[bytes]:
        return self.master.keys(prefix)

    def wait_empty(self, timeout_s: float = 30.0, prefix: str = "") -> None:
        self.master.wait_empty(timeout_s, prefix)

    def log(self) -> str:
        """The end of each process's log."""
        return "\n".join(
            f"{Path(server.folder).name}: {line}" for server in (*self.servers, *self.sentinels) for line in server.log().splitlines()[-5:]
        )

    # Who is master

    @property
    def master(self) -> WatchedServer:
        """Whom most Sentinels take for it, and who does so itself."""
        ports = [sentinel.named_port() for sentinel in self.sentinels if sentinel.is_running]
        port = max(set(ports), key=ports.count)
        (found,) = (server for server in self.servers if server.port == port)
        return found

    def wait_master(self, other_than: WatchedServer) -> WatchedServer:
        """Wait until all Sentinels name another master, and it is one. Returns it."""

        def has_moved() -> bool:
            ports = {sentinel.named_port() for sentinel in self.sentinels if sentinel.is_running}
            named = [server for server in self.servers if {server.port} == ports]
            return len(named) == 1 and named[0] is not other_than and named[0].replication.get("role") == "master"

        wait_until(has_moved, FAILOVER_S, "the Sentinels to make another server the master")
        return self.master

    # Losing the master

    def cut_off(self, server: WatchedServer) -> None:
        """From now on no Sentinel and no replica reaches it. Everybody else does."""
        server.set_cut_off(True)

    def heal(self, server: WatchedServer) -> None:
        """Sentinels and replicas reach it again. Returns once it has become a replica of the present master."""
        server.set_cut_off(False)
        self.wait_replica(server)

    def wait_replica(self, server: WatchedServer) -> None:
        """Wait until it follows the present master."""

        def follows() -> bool:
            said = server.replication
            return said.get("role") == "slave" and said.get("master_port") == self.master.port and said.get("master_link_status") == "up"

        wait_until(follows, FAILOVER_S, "the former master to follow the new one")

    def when_cut_off(self, server: WatchedServer, during: Callable[[], object]) -> WatchedServer:
        """Cut it off, do something while the Sentinels find out, and wait for the new master."""
        self.cut_off(server)
        during()
        return self.wait_master(other_than=server)


def _is_master_seen(sentinel: SentinelServer) -> bool:
    return sentinel.named_port() is not None
