"""The help of the commands that serve, and mistakes on the command line."""

import argparse

import pytest

from indexer.config.settings import GROUPS
from indexer.main.ingest import add_ingest
from indexer.main.parser import Parser, add_config

COLUMNS = 100
TWO_SCREENS = 100


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    parser = Parser(prog="kv-indexer serve")
    add_config(parser)
    return parser


def test_the_help_fits_two_screens(serving: argparse.ArgumentParser) -> None:
    lines = serving.format_help().splitlines()
    assert len(lines) <= TWO_SCREENS
    assert max(map(len, lines)) <= COLUMNS


def test_the_help_is_grouped(serving: argparse.ArgumentParser) -> None:
    headings = [line for line in serving.format_help().splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["options:", *(f"{group}:" for group in GROUPS)]


def test_every_flag_shares_a_line_with_its_help(serving: argparse.ArgumentParser) -> None:
    flags = [line for line in serving.format_help().splitlines() if line.startswith("  --") and "VALUE]" not in line]
    assert [line for line in flags if "  " not in line.strip()] == []


def test_a_flag_that_is_a_limit_now_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="kv-indexer ingest")
    add_ingest(parser)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["--log-entries-max", "5"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "kv-indexer ingest: --log-entries-max is the entry log_entries_max in the table [limits] of the configuration file (--config); "
        "see kv-indexer ingest --help\n"
    )


def test_an_unknown_flag_is_named_without_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Parser(prog="x").parse_args(["--colour=red", "secret"])
    assert capsys.readouterr().err == "x: unrecognized arguments: --colour; see x --help\n"


def test_what_follows_two_dashes_or_has_a_space_is_no_flag() -> None:
    parser = Parser(prog="x")
    parser.add_argument("words", nargs="*")
    assert parser.parse_args(["--", "--colour"]).words == ["--colour"]
    parser.add_argument("--prompt")
    assert parser.parse_args(["--prompt=--no flag", "--a b"]).words == ["--a b"]
