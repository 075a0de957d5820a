"""`python -m bench [--only NAME] [--json FILE]`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from bench import (
    against,
    capacity,
    cells,
    floors,
    grpc_scoring,
    hybrid,
    ingest,
    memory,
    parts,
    provenance,
    report,
    routing,
    scoring,
    shards,
    shared,
    stages,
    tables,
    tokenizing,
    visibility,
    workers,
)

MEASUREMENTS: dict[str, tuple[str, Callable[[], Sequence[Struct]]]] = {
    "ingest": ("Ingest, first publish until all is held", ingest.measure),
    "scoring": ("Scores over HTTP, 8 pods, 1,000,000 block copies, every answer verified", scoring.measure),
    "parts": ("Where the CPU of a score goes, µs of a request, 1,000,000 block copies, 8 connections", parts.measure),
    "stages": ("From publish to an answer that shows it, one client asking all the time, stage by stage", stages.measure),
    "tables": ("Where the memory of a block copy is, bytes, in process", tables.measure),
    "hybrid": ("A query for a hybrid model beside a plain one, in process, 8 pods, CPU", hybrid.measure),
    "routing": ("A pick beside a score: CPU of the service per HTTP request, 8 pods, 1,000,000 block copies", routing.measure),
    "grpc": ("Scores over gRPC beside HTTP, 8 pods, 1,000,000 block copies, every answer verified", grpc_scoring.measure),
    "visibility": ("From publish to a score answer that shows it", visibility.measure),
    "memory": ("Memory per block copy", memory.measure),
    "capacity": ("Many pods, each connected and holding 64 blocks: one process", capacity.measure),
    "shared-capacity": ("The same through Redis", capacity.measure_shared),
    "shared-ingest": ("Ingest through Redis, 64-block events, first publish until Redis has all", shared.measure_ingest),
    "shared-visibility": ("From publish to an answer of a scorer in another process, through Redis", shared.measure_visibility),
    "shared-copies": ("1,000,000 block copies in Redis, and a scorer that starts against them", shared.measure_copies),
    "shards": ("A model in one shard and in three, in a Cluster of three masters", shards.measure),
    "cells": ("2,000 pods in one scorer, and in four cells behind another one", cells.measure),
    "workers": ("Scores with one worker and with two, 8 pods, 8 connections", workers.measure),
    "tokenizing": ("Texts and chats by a local tokenizer, in process", tokenizing.measure),
    "against-llmd": ("Against llm-d's index in Redis, both with the same events and answers", against.measure),
}
# They explain figures that others measure.
ON_REQUEST = ("parts", "stages", "tables")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the service on this machine.")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="only this measurement; may be repeated")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), metavar="FILE", help="where the figures go (default: %(default)s)")
    asked = parser.parse_args()
    source = provenance.take()
    report.say_provenance(source)
    results: dict[str, Sequence[Struct]] = {}
    for name in asked.only or [name for name in MEASUREMENTS if name not in ON_REQUEST]:
        title, measure = MEASUREMENTS[name]
        results[name] = measure()
        report.say_table(title, results[name])
    if judged := floors.judge(results):
        results["floors"] = judged
        report.say_table("Floors", judged)
    report.write(asked.json, source, results)
    report.say(f"\nwritten to {asked.json}")


if __name__ == "__main__":
    main()
