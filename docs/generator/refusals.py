"""The reasons for which something from an engine is passed over, from `indexer.errors`."""

from docs.generator.markdown import cell, code, table
from indexer.errors import LOSSY_REASONS, REASONS


def refusals_table() -> str:
    """Every reason, and whether blocks may be missing after it."""
    rows = ([code(reason), cell(meaning), "yes" if reason in LOSSY_REASONS else "no"] for reason, meaning in REASONS.items())
    return table(["Reason", "What is passed over", "May lose blocks"], rows)
