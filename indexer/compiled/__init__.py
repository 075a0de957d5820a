"""The compiled core, and the one decision whether this process uses it.

The few functions and tables that take most of the CPU exist twice: in Python, where they are read and tested first, and in Cython (`_core.pyx`).
Both give the same results for every input. A machine without a C compiler runs the Python.

`core` is the compiled module, or None. A module that has such a function chooses when it is imported:

    chain_keys = chain_keys_in_python if core is None else core.chain_keys
"""

import os

__all__ = ["ACTIVE", "CHOICES", "VARIABLE", "WHY_NOT", "core"]

VARIABLE = "KV_INDEXER_CORE"
"""Environment variable: `python` switches the compiled core off, `compiled` refuses to start without it, `auto` takes it where it was built."""
CHOICES = ("auto", "compiled", "python")

WHY_NOT: str | None = None
"""Why the Python is used, in words; None where the compiled core is."""

try:
    if os.environ.get(VARIABLE) == "python":
        raise ImportError(f"{VARIABLE} says so")
    import indexer.compiled._core as core
except ImportError as error:
    core = None  # type: ignore[assignment]
    WHY_NOT = str(error)

ACTIVE = "python" if core is None else "compiled"
"""The core that is in use: `compiled` or `python`."""
