"""A master that moves when a test says so: clients of Sentinels that are told directly who it is, where real Sentinels would take seconds.

    with Moving() as moving:
        moving.begin(owner.store._session.client)
        moving.promote()
        moving.move(owner.store._session.client)

The second server's clock may be said to differ: scripts then take the time from there (`skewed`).
"""

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import pytest

from indexer.store import scripts
from indexer.store.client.sentinel import Address, MasterReport, SentinelClient
from tests.redis_server import RedisServer
from tests.scenarios.redis.mechanisms import _rewrite
from tests.waiting import wait_until

SKEW = "skew_ms"


class Moving:
    """`first` is master, `second` its replica until `promote`."""

    # Nobody listens there: no Sentinel says anything.
    url = "redis+sentinel://127.0.0.1:1/service"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.first = stack.enter_context(RedisServer())
            self.second = stack.enter_context(
                RedisServer(replicaof=f"127.0.0.1 {self.first.port}", replica_read_only="no", repl_diskless_sync="yes", repl_diskless_sync_delay="0")
            )
            wait_until(lambda: self.second.client().info("replication")["master_link_status"] == "up")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def begin(self, *clients: Any) -> None:
        """The first server is the master of these clients, which have not asked anything so far."""
        for client in clients:
            assert isinstance(client, SentinelClient)
            client._known = MasterReport(self._address(self.first), 1)
            client._pool.set_address(self._address(self.first))
            client._is_known.set()

    def promote(self) -> None:
        """All that the first has, the second has; from now on both go their own ways."""
        self.first.client().wait(1, 5000)
        self.second.client().replicaof("NO", "ONE")

    def move(self, *clients: Any) -> None:
        """From now on the second server is the master of these clients."""
        for client in clients:
            client._known = MasterReport(self._address(self.second), 2)
            client._change_master(self._address(self.first), self._address(self.second))

    def skew(self, ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The second server's clock is ahead by so much, as far as scripts tell the time."""
        for name in list(scripts.SCRIPTS):
            _rewrite(monkeypatch, name, "return time[1] * 1000 +", f"return (tonumber(redis.call('GET', '{SKEW}') or '0')) + time[1] * 1000 +")
        self.second.client().set(SKEW, ms)

    def now_ms(self, server: RedisServer) -> int:
        """What this server's clock shows."""
        client = server.client()
        seconds, microseconds = client.time()
        return int(seconds * 1000 + microseconds // 1000 + int(client.get(SKEW) or 0))

    @staticmethod
    def _address(server: RedisServer) -> Address:
        return "127.0.0.1", server.port
