"""schemathesis makes requests of the OpenAPI document, right ones and wrong ones, and holds each answer against it."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import Engine, stored
from tests.engine_server import EngineServer
from tests.ports import free_port
from tests.processes import ingest, serve
from tests.redis_server import RedisServer
from tests.running import ROOT, Command
from tests.waiting import wait_until

MODEL, POD = "a/model", "the/pod:8000"
OF_AN_ADMIN = "a-token-for-everything"
BLOCKS = 8
# Four times and more what a run takes where nothing else runs; `HANGS_S` is for a busy machine.
RUN_MAX_S, HANGS_S = 300, 3_600
# Nine of ten requests are made by the phase that is missing here. They are made once, where all routes are; the others show without them whether
# a route is there at all, and whether a token is asked for.
FEW = ("--phases", "examples,fuzzing,stateful", "--max-examples", "3")

pytestmark = pytest.mark.timeout(HANGS_S)


def as_ever(asked: object) -> tuple[int, bytes]:
    """Whatever is to be tokenized has the tokens that the pod holds."""
    return 200, f'{{"tokens": {list(range(4 * BLOCKS + 1))}}}'.encode()


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """All of its checks and phases, always the same requests; what is asked for is a real model, whose pod holds what many prompts begin with."""
    with Engine() as engine, EngineServer(routes={"/tokenize": as_ever}) as api, contextlib.ExitStack() as stack:
        service = stack.enter_context(serve(None, engine.spec(POD, MODEL, http=api.url), listen=f"tcp://127.0.0.1:{free_port()}", hot_prefixes="100"))
        number = engine.publish(stored(range(1, BLOCKS + 1), range(4 * BLOCKS)))
        service.wait_url().wait_for(pod=POD, sequence=number, trust="live")
        assert requests_made(service, tmp_path) > 500

        outcomes = {name: service.metric("kv_indexer_score_requests_total", outcome=name) for name in ("match", "no_match", "wrong_value", "failed")}
        assert min(outcomes["match"], outcomes["no_match"], outcomes["wrong_value"]) > 0
        assert outcomes["failed"] == 0
        picks = {name: service.metric("kv_indexer_route_requests_total", outcome=name) for name in ("picked", "wrong_value", "failed", "no_pod")}
        assert min(picks["picked"], picks["wrong_value"]) > 0
        assert (picks["failed"], picks["no_pod"]) == (0, 0)
        assert service.matched(range(4 * BLOCKS + 1), pod=POD, model=MODEL) == 4 * BLOCKS
        check_nothing_went_wrong(service)


def test_schemathesis_finds_nothing_at_an_indexer_either(tmp_path: Path) -> None:
    """The same where pods are shared, and nobody asks for scores."""
    with RedisServer() as redis, Engine() as engine, ingest(redis.url, engine.spec(POD, MODEL), listen=f"tcp://127.0.0.1:{free_port()}") as service:
        service.wait_url()
        wait_until(lambda: service.http.get(f"{service.url}/readyz").json()["status"] == "ready")
        assert requests_made(service, tmp_path, *FEW) > 30
        check_nothing_went_wrong(service)


def test_schemathesis_finds_nothing_where_tokens_are_needed(tmp_path: Path) -> None:
    """It has one that is good for everything, and asks without one and with wrong ones too."""
    for name, token in (("api", "a-token-for-scores"), ("admin", OF_AN_ADMIN)):
        (tmp_path / name).write_text(token)
    files = {"api_token_file": str(tmp_path / "api"), "admin_token_file": str(tmp_path / "admin")}
    with Engine() as engine, EngineServer(routes={"/tokenize": as_ever}) as api, contextlib.ExitStack() as stack:
        service = stack.enter_context(
            serve(None, engine.spec(POD, MODEL, http=api.url), listen=f"tcp://127.0.0.1:{free_port()}", hot_prefixes="100", **files)
        )
        service.http.headers["Authorization"] = f"Bearer {OF_AN_ADMIN}"
        number = engine.publish(stored(range(1, BLOCKS + 1), range(4 * BLOCKS)))
        service.wait_url().wait_for(pod=POD, sequence=number, trust="live")
        assert requests_made(service, tmp_path, *FEW, "-H", f"Authorization: Bearer {OF_AN_ADMIN}") > 50
        assert min(service.metric("kv_indexer_denied_total", reason=reason) for reason in ("no_token", "wrong_token")) > 0
        check_nothing_went_wrong(service)


def requests_made(service: Command, folder: Path, *more: str) -> int:
    """How many requests schemathesis made, without finding anything. `more`: options of it."""
    run = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"]
    options = [
        "--checks",
        "all",
        "--phases",
        "examples,coverage,fuzzing,stateful",
        "--max-examples",
        "10",
        "--continue-on-failure",
        "--no-color",
        *more,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks", "TEST_MODEL": MODEL, "TEST_POD": POD}
    with (folder / "said").open("w+") as file:
        words = [*run, *options, "--generation-deterministic"]
        with subprocess.Popen(words, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT) as running:
            try:
                wait_until(lambda: running.poll() is not None, RUN_MAX_S, "the end of schemathesis")
            finally:
                running.kill()
        file.seek(0)
        said = file.read()
    assert running.returncode == 0, said
    assert "WARNINGS" not in said, said
    (made,) = re.findall(r"(\d+) generated", said)
    return int(made)


def check_nothing_went_wrong(service: Command) -> None:
    for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]:
        for stream in pod["streams"]:
            assert stream["connected"] == (pod["pod"] == POD), "no other engine was there to be dialled"
    assert not [line for line in service.lines if "Traceback" in line or "ERROR" in line]
