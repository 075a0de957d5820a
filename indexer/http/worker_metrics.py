"""The metrics of all workers that share a port: whichever is asked answers with those of all, each series with the label `worker`."""

from collections.abc import Iterable, Iterator

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.samples import Exemplar, Sample

from indexer.http.turns import Turns
from indexer.workers.board import WorkerBoard
from indexer.workers.worker import Worker

TOPIC = "metrics"
LABEL = "worker"


class _Exemplar(Struct, frozen=True, array_like=True):
    """What leads to a trace of one of those that a sample counts. `at_s`: the time of day."""

    labels: dict[str, str]
    value: float
    at_s: float | None

    def as_told(self) -> Exemplar:
        """The same as the library has it."""
        return Exemplar(self.labels, self.value, self.at_s)


class _Family(Struct, frozen=True, array_like=True):
    """One metric of one worker. `samples`: name, labels, value, exemplar."""

    name: str
    documentation: str
    kind: str
    unit: str
    samples: list[tuple[str, dict[str, str], float, _Exemplar | None]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[_Family]).decode


class WorkerStates:
    """What the parent knows of the workers. `answered`: those whose metrics are told."""

    def __init__(self, board: WorkerBoard, answered: Iterable[int] = ()) -> None:
        self._board = board
        self._answered = set(answered)

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("kv_indexer_worker_up", "1 if the worker has told its metrics, else 0, with --workers.", labels=[LABEL])
        restarts = CounterMetricFamily("kv_indexer_worker_restarts", "Times that a worker was started again after it had died.", labels=[LABEL])
        hangs = CounterMetricFamily(
            "kv_indexer_worker_hangs", "Times that a worker was ended since its event loop stood still for ten seconds.", labels=[LABEL]
        )
        for number in range(self._board.count):
            up.add_metric([str(number)], float(number in self._answered))
            restarts.add_metric([str(number)], self._board.restarts(number))
            hangs.add_metric([str(number)], self._board.hangs(number))
        yield from (up, restarts, hangs)


class WorkerMetrics:
    """`gather` asks all other workers for theirs. Counters and gauges stay as each worker has them, so that sums and maxima are the reader's."""

    def __init__(self, registry: CollectorRegistry, worker: Worker) -> None:
        self._registry = registry
        self._worker = worker
        worker.handlers[TOPIC] = self._tell

    async def gather(self) -> list[Metric]:
        """A worker that does not answer in time is left out; `kv_indexer_worker_up` says so."""
        told = {number: _decode(answer) for number, answer in (await self._worker.ask(TOPIC)).items()}
        told[self._worker.number] = await self._own()
        metrics: dict[str, Metric] = {}
        turns = Turns()
        for number, families in sorted(told.items()):
            for family in families:
                metric = metrics.setdefault(family.name, Metric(family.name, family.documentation, family.kind, family.unit))
                metric.samples += [
                    Sample(name, {**labels, LABEL: str(number)}, value, None, None if exemplar is None else exemplar.as_told())
                    for name, labels, value, exemplar in family.samples
                ]
                await turns.give()
        return [*metrics.values(), *WorkerStates(self._worker.group.board, told).collect()]

    async def _tell(self, content: bytes) -> bytes:
        return _encode(await self._own())

    async def _own(self) -> list[_Family]:
        families = []
        turns = Turns()
        for metric in self._registry.collect():
            samples = [(sample.name, sample.labels, sample.value, _told(sample.exemplar)) for sample in metric.samples]
            families.append(_Family(metric.name, metric.documentation, metric.type, metric.unit, samples))
            await turns.give()
        return families


def _told(exemplar: Exemplar | None) -> _Exemplar | None:
    return None if exemplar is None else _Exemplar(exemplar.labels, exemplar.value, None if exemplar.timestamp is None else float(exemplar.timestamp))
