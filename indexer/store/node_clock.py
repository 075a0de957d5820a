"""The clock of the Redis that holds a stream, as its owner knows it."""


class NodeClock:
    """An estimate that is never ahead of the clock. Each node of a Cluster has its own: the clock of one says nothing about that of another.

    Nodes are named by the caller; a Redis that is no Cluster is one node. Local times are of time.monotonic(), in seconds.
    """

    def __init__(self) -> None:
        self._node: str | None = None
        self._ahead_ms = 0.0

    def note(self, node: str, now_ms: int, local_s: float) -> None:
        """This node's clock showed `now_ms` when it answered, and the answer is here at `local_s`."""
        self._node = node
        self._ahead_ms = now_ms - local_s * 1000

    def knows(self, node: str) -> bool:
        return self._node == node

    def at_ms(self, node: str, local_s: float) -> int:
        """What this node's clock shows at a local time; 0 where that is not known."""
        return int(local_s * 1000 + self._ahead_ms) if self.knows(node) else 0
