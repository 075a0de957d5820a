"""Types of arguments on the command line."""

import argparse
import math
from collections.abc import Callable
from typing import Any


def port(text: str) -> int:
    """A port; 0 is any free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} should be a port, from 0 to 65535")
    return int(text)


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader of a number above 0 of this kind."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} should be a number above 0")
        return value

    return read
