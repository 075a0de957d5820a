"""What a block copy costs in memory, over everything that is kept for it: the growth of the server's resident memory."""

from contextlib import ExitStack

from msgspec import Struct

from bench.publisher import Publisher
from bench.server import Server
from bench.workload import Plan

PODS = 8
COPIES = 1_000_000
# Published in parts, each applied before the next, so that what waits in the inbox does not count.
PARTS = 10
MIB = 2**20


class Memory(Struct, frozen=True):
    """No block is held twice: the dearest case, since pods share the index entry of a common block."""

    copies: int
    pods: int
    before_mib: float
    after_mib: float
    bytes_per_copy: float


def measure() -> list[Memory]:
    with ExitStack() as stack:
        plans = [Plan(seed=200 + number, blocks=COPIES // PODS // 64 * 64) for number in range(PODS)]
        publishers = [stack.enter_context(Publisher(f"pod-{number}", plan)) for number, plan in enumerate(plans)]
        server = stack.enter_context(Server([publisher.wait_prepared() for publisher in publishers]))
        before = server.rss_bytes()
        copies = sum(_publish(publisher, server) for publisher in publishers)
        after = server.rss_bytes()
    return [Memory(copies, PODS, round(before / MIB, 1), round(after / MIB, 1), round((after - before) / copies, 1))]


def _publish(publisher: Publisher, server: Server) -> int:
    """Returns how many blocks it published."""
    for _ in range(PARTS):
        publisher.start(1 / PARTS)
        published = publisher.finish()
        server.wait_applied(publisher.pod, published)
    return published.blocks
