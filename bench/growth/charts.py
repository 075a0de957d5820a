"""The charts of the documentation, one for each axis."""

from collections.abc import Callable, Sequence
from typing import Any

from bench.fleet.charts import Chart, Point

NAMES = {"json": "JSON", "msgpack": "packed tokens in msgpack"}


def _length(rows: Sequence[Any]) -> Chart:
    series = {name: [(row.blocks, row.cpu_us) for row in rows if row.body == body] for body, name in NAMES.items()}
    return _chart("growth-length", "CPU of a query by the length of its prompt", "blocks of 16 tokens", "µs", series)


def _pods(rows: Sequence[Any]) -> Chart:
    series = {name: [(row.pods, row.cpu_us) for row in rows if row.body == body] for body, name in NAMES.items()}
    return _chart("growth-pods", "CPU of a query of 512 blocks by the number of pods", "pods", "µs", series)


def _event(rows: Sequence[Any]) -> Chart:
    series = {"serve": _points(rows, "event_blocks", "cpu_us_per_block")}
    return _chart("growth-event", "CPU of ingest by the size of events", "blocks of an event", "µs a block", series)


def _copies(rows: Sequence[Any]) -> Chart:
    series = {
        "query, µs": _points(rows, "copies", "cpu_us"),
        "load, ms": [(row.copies, 1000 * row.load_s) for row in rows],
        "lag, ms": _points(rows, "copies", "lag_p50_ms"),
    }
    return _chart("growth-copies", "A scorer by the block copies that it holds", "block copies", "µs, ms", series)


CHARTS: dict[str, Callable[[Sequence[Any]], Chart]] = {"length": _length, "pods": _pods, "event": _event, "copies": _copies}


def _points(rows: Sequence[Any], x: str, y: str) -> list[Point]:
    return [(getattr(row, x), getattr(row, y)) for row in rows]


def _chart(name: str, title: str, x: str, y: str, series: dict[str, list[Point]]) -> Chart:
    return Chart(name, title, x, y, series, is_log=True, is_log_across=True)
