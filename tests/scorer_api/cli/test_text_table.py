"""Tables for a terminal."""

from scorer_api.cli.text_table import printable, table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(["POD", "N"], [["a", "10"], ["longer", "2"]]) == "POD     N\na       10\nlonger  2"
    assert table(["POD", "N"], []) == "POD  N"


def test_control_characters_are_replaced() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\ufffd[2Jb\ufffdc"
    assert "\x1b" not in table(["POD"], [["\x1b[31m"]])
