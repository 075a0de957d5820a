"""Markdown from data."""

from collections.abc import Iterable, Sequence


def code(text: str) -> str:
    """Text in a code span, also inside of a table."""
    return f"`{text.replace('|', '&#124;')}`" if text else ""


def cell(text: str) -> str:
    """Plain text for a cell of a table: nothing in it is markup, but code spans."""
    parts = text.split("`")
    for index in range(0, len(parts), 2):
        for character in "\\*_<[":
            parts[index] = parts[index].replace(character, "\\" + character)
    return "`".join(parts).replace("|", "&#124;").replace("\n", " ")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. Its cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sections(level: int, parts: Iterable[tuple[str, str]]) -> str:
    """(Heading, text) pairs as sections of this level."""
    return "\n\n".join(f"{'#' * level} {heading}\n\n{text}" for heading, text in parts)
