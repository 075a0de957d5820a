"""Reads the text format of Prometheus. Pure."""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_NAME_ENDS: Final = ("{", " ", "\t")


def read_samples(text: str, is_wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """The samples of the series whose names are wanted. Other lines are not parsed: an engine has thousands, which would take ten milliseconds.

    Raises ValueError for a wanted line that is not in the text format.
    """
    lines = [line for line in text.splitlines() if not line.startswith("#") and is_wanted(_name_of(line))]
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            yield from family.samples
    except (IndexError, KeyError) as error:
        raise ValueError(f"no text of metrics: {error}") from None


def _name_of(line: str) -> str:
    """The name that the line begins with, to the first of `_NAME_ENDS`."""
    for end in _NAME_ENDS:
        line = line.partition(end)[0]
    return line
