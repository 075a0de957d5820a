"""The frames of `kv-indexer top`, made with rich."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from scorer_api.cli.text_table import printable
from scorer_api.cli.top_samples import Figures, Sample, figures, rows

STYLES = {"live": "green", "partial": "yellow", "stale": "red", "expired": "dim"}
COLUMNS = ("POD", "MODEL", "RANK", "TRUST", "BLOCKS", "BATCHES/S", "LAST BATCH", "GAPS", "RESTARTS", "LAST ERROR")
RIGHT = {"RANK", "BATCHES/S", "LAST BATCH", "GAPS", "RESTARTS"}


def frame(url: str, before: Sample | None, now: Sample | None, outage: str | None) -> RenderableType:
    """One frame. `outage`: why the service does not answer at present; the frame shows the last sample then."""
    lines = [Text.assemble(("kv-indexer ", "bold"), printable(url), "   q ends it")]
    if outage is not None:
        lines.append(Text(f"away: {printable(outage)}", "bold red"))
    if now is None:
        return Group(*lines)
    return Group(*lines, _summary(figures(before, now), now), _table(before, now))


def _summary(seen: Figures, now: Sample) -> Text:
    streams = [stream for pod in now.pods for stream in pod.streams]
    parts = [
        f"{len(now.pods)} pods, {sum(stream.trust == 'live' for stream in streams)} of {len(streams)} streams live",
        f"{_count(seen.blocks)} blocks",
        f"{_count(seen.events_per_s)} events/s, {_count(seen.stored_per_s)} blocks/s stored, {_count(seen.removed_per_s)} removed",
        f"lag {_time(seen.lag_s)}",
        f"{_count(seen.scores_per_s)} scores/s in {_time(seen.score_s)}",
        f"hit share {'-' if seen.hit_share is None else f'{seen.hit_share:.0%}'}",
    ]
    if seen.follower_age_s is not None:
        parts.append(f"owners heard {_time(seen.follower_age_s)} ago")
    if seen.redis_up is not None:
        parts.append(f"Redis {'up' if seen.redis_up else 'away'}")
    return Text(" · ".join(parts))


def _table(before: Sample | None, now: Sample) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in RIGHT else "left", no_wrap=True)
    for row in rows(before, now):
        stream = row.stream
        cells = [
            row.pod,
            row.model,
            str(stream.rank),
            stream.trust if row.is_ready else f"{stream.trust}, not ready",
            " ".join(f"{tier}:{count}" for tier, count in stream.blocks.items()) or "-",
            _count(row.batches_per_s),
            "-" if stream.last_batch_age_s is None else f"{_time(stream.last_batch_age_s)} ago",
            str(stream.gaps),
            str(stream.restarts),
            stream.last_error or "-",
        ]
        style = STYLES.get(stream.trust, "")
        # Text and not str: rich would read [ ] in a name as markup.
        table.add_row(*(Text(printable(cell), style if column == "TRUST" else "") for column, cell in zip(COLUMNS, cells, strict=True)))
    return table


def _count(number: float | None) -> str:
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
