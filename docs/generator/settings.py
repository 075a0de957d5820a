"""The tables of settings and limits, from `indexer.config.settings`."""

from typing import Annotated, Any, Literal, get_args, get_origin

from msgspec import Meta

from docs.generator.markdown import cell, code, table
from indexer.config.settings import Field, fields, limit_fields


def settings_table() -> str:
    """Every setting with its default and the values that are allowed."""
    return table(["Flag", "Default", "Allowed", "Meaning"], (_row(field.flag, field) for field in fields()))


def limits_table() -> str:
    """Every entry of `[limits]` with its default and the values that are allowed."""
    return table(["Entry", "Default", "Allowed", "Meaning"], (_row(field.name, field) for field in limit_fields()))


def _row(name: str, field: Field) -> list[str]:
    return [code(name), code(shown_default(field)) or "", allowed(field), cell(field.description)]


def shown_default(field: Field) -> str:
    """As a user would write it; empty for none."""
    if field.default in (None, (), ""):
        return ""
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def allowed(field: Field) -> str:
    """The choices or the bounds of its type, as Markdown; empty where any text is taken."""
    plain, metas = _parts_of(field.type)
    if get_origin(plain) is Literal:
        return ", ".join(code(str(choice)) for choice in get_args(plain))
    least = next((meta.ge for meta in metas if meta.ge is not None), None)
    most = next((meta.le for meta in metas if meta.le is not None), None)
    if least is None and most is None:
        return "`true`, `false`" if plain is bool else ""
    return f"{_number(least)} to {_number(most)}"


def _parts_of(hint: Any) -> tuple[Any, list[Meta]]:
    """The type itself, and what is said about it."""
    if get_origin(hint) is not Annotated:
        return hint, []
    plain, *metas = get_args(hint)
    return plain, [meta for meta in metas if isinstance(meta, Meta)]


def _number(value: float | None) -> str:
    if value is None:
        return "any"
    power = int(value).bit_length() - 1
    return f"2^{power}" if value > 2**20 and value == 2**power else f"{value:,}"
