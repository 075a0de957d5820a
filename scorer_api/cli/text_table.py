"""Tables of text for a terminal."""

from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    """Text from elsewhere without control characters, which could move a terminal's cursor, or worse."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    lines = [heads, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
