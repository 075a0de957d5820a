"""`kv-indexer hot`: the prefixes that a running service is asked for most, and the pods that hold them, as a table."""

import argparse

from scorer_api.cli.argument_types import positive
from scorer_api.cli.service_connection import add_service, ask
from scorer_api.cli.text_table import table
from scorer_api.client import HotAnswer, HotPrefix

HEADS = ("PREFIX", "MODEL", "BLOCKS", "TOKENS", "REQUESTS", "SHARE", "ASKED", "HELD BY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_service(parser)
    parser.add_argument("--model", help="prefixes of this model only")
    parser.add_argument("--limit", type=positive(int), default=20, metavar="N", help="show so many (default: %(default)s)")
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError for a file that cannot be used."""
    return ask(parsed, lambda client: as_text(client.hot(parsed.model, parsed.limit)))


def as_text(answer: HotAnswer) -> str:
    """The prefixes as text, each indented below the one that it continues."""
    depths: dict[str | None, int] = {None: -1}
    rows = []
    for prefix in in_tree_order(answer.prefixes):
        depth = depths[prefix.prefix] = depths.get(prefix.parent, -1) + 1
        rows.append(
            (
                "  " * depth + prefix.prefix,
                prefix.model,
                str(prefix.blocks),
                str(prefix.tokens),
                f"{prefix.requests:.1f}",
                f"{prefix.share:.0%}",
                f"{prefix.asked_age_s:.0f} s ago",
                " ".join(f"{pod}:{tokens}" for pod, tokens in sorted(prefix.held.items(), key=lambda item: (-item[1], item[0]))) or "-",
            )
        )
    return table(HEADS, rows)


def in_tree_order(prefixes: list[HotPrefix]) -> list[HotPrefix]:
    """Each prefix right behind the one that it continues, or behind what else continues that."""
    shown = {prefix.prefix for prefix in prefixes}
    below: dict[str | None, list[HotPrefix]] = {}
    for prefix in prefixes:
        below.setdefault(prefix.parent if prefix.parent in shown else None, []).append(prefix)
    ordered: list[HotPrefix] = []
    waiting = list(reversed(below.get(None, [])))
    while waiting:
        prefix = waiting.pop()
        ordered.append(prefix)
        waiting += reversed(below.get(prefix.prefix, []))
    return ordered
