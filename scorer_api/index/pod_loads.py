"""How busy pods are: the newest load of each pod of which one is known."""

from indexer.engines.load import Load


class PodLoads:
    """The last measurement of each pod, however old: readers decide how long it counts."""

    def __init__(self) -> None:
        self._loads: dict[tuple[str, str], tuple[Load, float]] = {}

    def note(self, model: str, pod: str, load: Load, at_s: float) -> None:
        """`at_s`: when it was measured, by the monotonic clock. An older one than what is known changes nothing."""
        known = self._loads.get((model, pod))
        if known is None or known[1] <= at_s:
            self._loads[model, pod] = load, at_s

    def forget(self, model: str, pod: str) -> None:
        """Remove the load of a pod that is no longer measured. Idempotent."""
        self._loads.pop((model, pod), None)

    def get(self, model: str, pod: str) -> tuple[Load, float] | None:
        """A pod's newest load, and when it was measured by the monotonic clock."""
        return self._loads.get((model, pod))
