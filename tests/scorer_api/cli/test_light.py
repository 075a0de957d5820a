"""What commands import: only those that serve need the libraries of a server."""

import json
import subprocess
import sys

import pytest

from scorer_api.cli.main import COMMANDS
from tests.command import environment
from tests.running import ROOT

SERVING = {"serve", "ingest", "api", "demo"}
OF_A_SERVER = {"fastapi", "starlette", "pydantic", "uvicorn", "httptools"}
IMPORT = """
import importlib, json, sys
import scorer_api.cli.__main__
for name in json.loads(sys.argv[1]):
    importlib.import_module(f"scorer_api.cli.{name.replace('-', '_')}")
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def imported_by(*commands: str) -> set[str]:
    """Top-level packages that these commands import, in an interpreter of their own."""
    words = [sys.executable, "-c", IMPORT, json.dumps(commands)]
    return set(json.loads(subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True, timeout=60).stdout))


def test_commands_that_do_not_serve_import_nothing_of_a_server() -> None:
    assert imported_by(*(COMMANDS.keys() - SERVING)) & OF_A_SERVER == set()


@pytest.mark.parametrize("command", ["ingest"])
def test_commands_that_serve_do(command: str) -> None:
    """Otherwise the test above would look for the wrong names."""
    assert imported_by(command) >= OF_A_SERVER


def test_the_start_of_every_command_is_small() -> None:
    assert imported_by() & {*OF_A_SERVER, "httpx", "redis", "zmq", "rich", "prometheus_client"} == set()
