"""The kv-indexer command with a standard input and output, forked where that can be. Services, which need neither, are `tests.running.Command`."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from indexer import compiled
from tests.forked import IS_AVAILABLE, ROOT, ForkedProcess, fork_module

MODULE = "scorer_api.cli.__main__"


def environment(**more: str) -> dict[str, str]:
    """This process's, without settings of the service; the core is the same."""
    return {**{key: value for key, value in os.environ.items() if not key.startswith("KV_INDEXER_") or key == compiled.VARIABLE}, **more}


def start(*words: str | Path, env: Mapping[str, str] | None = None, is_fresh: bool = False) -> "subprocess.Popen[str] | ForkedProcess":
    """`is_fresh`: in an interpreter of its own, as users start it."""
    env = environment() if env is None else env
    if IS_AVAILABLE and not is_fresh:
        return fork_module(MODULE, [*map(str, words)], env, with_streams=True)
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "scorer_api.cli", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)


def run(
    *words: str | Path, stdin: str = "", env: Mapping[str, str] | None = None, timeout_s: float = 60.0, is_fresh: bool = False
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command, which ends by itself."""
    process = start(*words, env=env, is_fresh=is_fresh)
    try:
        out, err = process.communicate(stdin, timeout_s)
    except BaseException:
        process.kill()
        raise
    return process.wait(), out, err
