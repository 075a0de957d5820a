"""Routed requests that end: where workers share a port, the end of a request may be reported to another worker than the one that picked its pod."""

from indexer.workers.worker import Worker
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.routing.router import Router

TOPIC = "done"
KNOWN, UNKNOWN = b"1", b"0"


class RoutedRequests:
    """`worker`: this one, where there are others."""

    def __init__(self, router: Router, metrics: RouteMetrics, worker: Worker | None) -> None:
        self._router = router
        self._metrics = metrics
        self._worker = worker
        if worker is not None:
            worker.handlers[TOPIC] = self._of_another

    async def done(self, name: str) -> bool:
        """Forget a request, by its id. Returns whether it counted."""
        worker = self._worker
        if worker is None or (owner := worker.owner_of(name)) == worker.number:
            is_known = self._router.done(name)
        else:
            is_known = await worker.ask_one(owner, TOPIC, name.encode()) == KNOWN
        self._metrics.note_done(is_known=is_known)
        return is_known

    async def _of_another(self, content: bytes) -> bytes:
        return KNOWN if self._router.done(content.decode()) else UNKNOWN
