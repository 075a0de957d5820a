"""Types of arguments name what would be right."""

from argparse import ArgumentTypeError

import pytest

from scorer_api.cli.argument_types import port, positive


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("8080", 8080), ("65535", 65535)])
def test_ports(text: str, value: int) -> None:
    assert port(text) == value


@pytest.mark.parametrize("text", ["65536", "-1", "", "http", "1.0"])
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="should be a port, from 0 to 65535"):
        port(text)


def test_positive_numbers() -> None:
    assert (positive(int)("3"), positive(float)("0.5")) == (3, 0.5)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", ""])
def test_what_is_not_above_0(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="should be a number above 0"):
        positive(float)(text)
