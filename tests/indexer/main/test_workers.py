"""What is wrong with --workers, and with the settings of workers, is told once and ends the command."""

import socket
from pathlib import Path

import pytest

from tests import command

API = ("api", "--port", "0", "--redis", "redis://127.0.0.1:1/0", "--workers", "2")


@pytest.mark.parametrize("words", [("ingest", "--redis", "redis://127.0.0.1:1/0"), ("demo",)])
def test_only_what_scores_has_workers(words: tuple[str, ...]) -> None:
    code, _, error = command.run(*words, "--port", "0", "--workers", "2")
    assert (code, error) == (2, "kv-indexer: --workers=2: is for kv-indexer serve and api\n")


def test_workers_need_redis() -> None:
    code, _, error = command.run("api", "--workers", "2")
    assert code == 2
    assert error.startswith("kv-indexer: --redis=None: is required: ")


def test_workers_take_no_engines_that_dial_in() -> None:
    code, _, error = command.run("serve", "--port", "0", "--workers", "2", "--listen", "tcp://127.0.0.1:5557")
    expected = "does not go with --workers: one process has the port at which engines dial in"
    assert (code, error) == (2, f"kv-indexer: --listen='tcp://127.0.0.1:5557': {expected}\n")


def test_a_file_that_is_missing_is_told_once(tmp_path: Path) -> None:
    code, _, error = command.run(*API, "--tls-cert", tmp_path / "missing", "--tls-key", tmp_path / "missing")
    assert code == 2
    assert error.count("cannot be read: No such file or directory") == 1


def test_a_port_for_gateways_that_another_service_has_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        for port, expected in ((other.getsockname()[1], "cannot listen there"), (0, "needs a port that all workers can share, not 0")):
            address = f"127.0.0.1:{port}"
            code, _, error = command.run(*API, "--gateway-listen", address)
            assert (code, error) == (2, f"kv-indexer: --gateway-listen='{address}': {expected}\n")
