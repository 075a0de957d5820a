"""The metrics in a text format of Prometheus, made in steps: with thousands of streams other requests have their turn between two of them."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from indexer.http.turns import Turns

# So many samples are encoded at a time.
SAMPLES_MAX = 200
# The last line of the format OpenMetrics.
END = b"# EOF\n"


class _Part(Collector):
    """Some samples of one metric, as the library's encoders take them."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


async def exposition(metrics: Iterable[Metric], encode: Callable[[Collector], bytes]) -> bytes:
    """All these metrics, as `encode`, one of the library's encoders, would write them in one step."""
    pieces: list[bytes] = []
    end = b""
    turns = Turns()
    for metric in metrics:
        for number, part in enumerate(_parts(metric)):
            piece = encode(part)
            if piece.endswith(END):
                piece, end = piece.removesuffix(END), END
            pieces.append(_without_header(piece) if number else piece)
            await turns.give()
    return b"".join(pieces) + end


def _parts(metric: Metric) -> Iterator[_Part]:
    samples = metric.samples
    if len(samples) <= SAMPLES_MAX:
        yield _Part(metric)
        return
    for start in range(0, len(samples), SAMPLES_MAX):
        part = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        part.samples = samples[start : start + SAMPLES_MAX]
        yield _Part(part)


def _without_header(piece: bytes) -> bytes:
    """The samples of a part that is not the first one: what the metric is was said there."""
    while piece.startswith(b"# "):
        piece = piece[piece.index(b"\n") + 1 :]
    return piece
