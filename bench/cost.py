"""What something costs this process and a Redis."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from tests.redis_server import RedisServer

POLL_S = 0.01


class Cost(Struct):
    """Seconds: by the clock, of this process's CPU, of Redis's CPU."""

    elapsed_s: float = 0.0
    client_s: float = 0.0
    redis_s: float = 0.0

    @property
    def cpu_s(self) -> float:
        return self.client_s + self.redis_s


@contextmanager
def costing(server: RedisServer) -> Iterator[Cost]:
    """`with costing(server) as cost:` filled in at the end. What Redis frees in the background is part of its CPU time."""
    cost = Cost()
    client: Any = server.client()
    redis_before_s = redis_cpu_s(client)
    started_s, cpu_before_s = time.perf_counter(), time.process_time()
    yield cost
    cost.elapsed_s, cost.client_s = time.perf_counter() - started_s, time.process_time() - cpu_before_s
    while client.info("memory")["lazyfree_pending_objects"]:
        time.sleep(POLL_S)
    cost.redis_s = redis_cpu_s(client) - redis_before_s
    client.close()


def redis_cpu_s(client: Any) -> float:
    """The CPU time of all threads of a redis-server so far, user and system."""
    found = client.info("cpu")
    return float(found["used_cpu_user"] + found["used_cpu_sys"])


def redis_used_bytes(server: RedisServer) -> int:
    """Without the buffers of connections."""
    found: Any = server.client().info("memory")
    return int(found["used_memory"]) - int(found["mem_clients_normal"])
