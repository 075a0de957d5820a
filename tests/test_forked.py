"""Forked processes are what fresh ones are: with exit codes, signals, an environment and a standard error of their own."""

import os
import random
import secrets
import signal
import subprocess
import sys

import pytest

from indexer import __version__
from indexer.compiled import ACTIVE
from tests.forked import IS_AVAILABLE, ForkedProcess, fork_module

pytestmark = pytest.mark.skipif(not IS_AVAILABLE, reason="forking from one parent needs Linux")
MODULE = "scorer_api.cli.__main__"


def ended(process: ForkedProcess) -> tuple[int, str]:
    text = process.stderr.read()
    process.stderr.close()
    return process.wait(30), text


def test_exit_code_and_standard_error_are_those_of_the_command() -> None:
    assert ended(fork_module(MODULE, ["serve", "--port", "none"], dict(os.environ)))[0] == 2
    code, text = ended(fork_module(MODULE, ["serve"], {**os.environ, "KV_INDEXER_PORT": "none"}))
    assert code == 2
    assert "KV_INDEXER_PORT" in text
    assert "KV_INDEXER_PORT" not in os.environ


def test_an_error_of_ours_shows_its_traceback() -> None:
    code, text = ended(fork_module("tests.patched", ["no-such-mechanism", "serve"], dict(os.environ)))
    assert code == 1
    assert "KeyError" in text


def test_it_is_a_child_of_this_process_and_takes_signals() -> None:
    process = fork_module(MODULE, ["serve", "--port", "0"], dict(os.environ))
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    process.kill()  # nothing is left to kill, and nothing else is hit


def test_standard_input_and_output_are_those_of_the_command() -> None:
    process = fork_module(MODULE, ["score", "--url", "http://127.0.0.1:9", "--model", "m", "--tokens-file", "-"], dict(os.environ), with_streams=True)
    assert process.communicate("no numbers", 30)[0] == ""
    assert process.returncode == 2
    process = fork_module(MODULE, ["--version"], dict(os.environ), with_streams=True)
    assert process.communicate(timeout=30) == (f"kv-indexer {__version__} ({ACTIVE} core)\n", "")
    process = fork_module(MODULE, ["serve", "--port", "0"], dict(os.environ), with_streams=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.01)
    assert process.wait(30) == -signal.SIGKILL


def test_random_numbers_differ_between_processes() -> None:
    """What makes generations and fences unique must not be inherited."""
    first, second = (fork_module("tests.test_forked", [], dict(os.environ)) for _ in range(2))
    assert ended(first)[1] != ended(second)[1]


def main(_words: list[str]) -> int:
    """What the last test forks."""
    sys.stderr.write(f"{random.random()} {secrets.randbits(64)}")
    return 0
