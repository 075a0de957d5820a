"""Which package may import which, as the test of the imports states it."""

from docs.generator.markdown import code, table
from tests.test_imports import MAY_IMPORT


def imports_table() -> str:
    """Every package with those that it may import, lower ones first."""
    order = list(MAY_IMPORT)
    rows = ([code(package), ", ".join(map(code, sorted(others, key=order.index))) or "nothing"] for package, others in MAY_IMPORT.items())
    return table(["Package", "May import"], rows)
