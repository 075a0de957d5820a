"""Reads the text format of Prometheus. Pure."""

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_NAME_ENDS: Final = ("{", " ", "\t")
# The parser's time grows with the square of a label's length. Engines have lines of some hundred characters, and some hundred of a name.
LINE_LENGTH_MAX = 4_096
LINES_MAX = 4_096
NAME_LENGTH_MAX = 128


def read_samples(text: str, is_wanted: Callable[[str], bool]) -> Iterator[Sample]:
    """The samples of the series whose names are wanted. Other lines are not parsed: an engine has thousands, which would take ten milliseconds.

    Raises ValueError for a wanted line that is not in the text format or is longer than LINE_LENGTH_MAX, and for more of them than LINES_MAX.
    """
    lines = [line for line in text.splitlines() if not line.startswith("#") and is_wanted(_name_of(line))]
    longest = max(map(len, lines), default=0)
    if longest > LINE_LENGTH_MAX or len(lines) > LINES_MAX:
        raise ValueError(f"{len(lines)} lines of metrics, the longest of {longest} characters; at most {LINES_MAX} of {LINE_LENGTH_MAX} are read")
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            yield from family.samples
    except (IndexError, KeyError) as error:
        raise ValueError(f"no text of metrics: {error}") from None


def _name_of(line: str) -> str:
    """The name that the line begins with, to the first of `_NAME_ENDS`."""
    name = line[:NAME_LENGTH_MAX]
    for end in _NAME_ENDS:
        name = name.partition(end)[0]
    return name
