"""deploy/Dockerfile: what it copies and installs, and, in `make test-deploy`, its steps, carried out without a container engine."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from packaging.requirements import Requirement

from tests.deploy.image_steps import Image, built, instructions
from tests.deploy.manifests import DEPLOY, ROOT, tool
from tests.engine import Engine, stored
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.running import Client
from tests.tls import TlsFront
from tests.waiting import wait_until

DOCKERFILE = DEPLOY / "Dockerfile"
HEALTHCHECK = DEPLOY / "healthcheck.py"
PINNED = re.compile(r"^([\w.-]+)==([\w.]+)(?: ; [^\\]+)? \\$", re.MULTILINE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """What this distribution needs, as it is installed here, and what that needs."""
    found = set()
    for text in importlib.metadata.requires(name) or []:
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found.add(normal(requirement.name))
            found |= needed(requirement.name, frozenset(requirement.extras))
    return found


# As it is written


def test_every_version_that_is_needed_is_pinned_with_its_hashes() -> None:
    text = (DEPLOY / "requirements.txt").read_text()
    pinned = {normal(name) for name, _ in PINNED.findall(text)}
    assert len(pinned) > 20
    # The image is one for all roles, so it can also pick for gateways, find engines in DNS and send traces.
    assert needed("kv-event-indexer", frozenset({"dns", "gateway", "otel"})) - pinned == set()
    for entry in re.split(r"\n(?=[a-z])", text)[1:]:
        assert "--hash=sha256:" in entry, entry.partition("\n")[0]


def test_the_versions_pinned_are_allowed() -> None:
    pinned = {normal(name): version for name, version in PINNED.findall((DEPLOY / "requirements.txt").read_text())}
    wanted = [Requirement(text) for text in importlib.metadata.requires("kv-event-indexer") or []]
    direct = [requirement for requirement in wanted if "extra" not in str(requirement.marker or "")]
    assert len(direct) > 8
    assert [str(requirement) for requirement in direct if not requirement.specifier.contains(pinned[normal(requirement.name)])] == []


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    allowed = [line.removeprefix("!").rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for name, words in instructions(DOCKERFILE) if name == "COPY" and "--from" not in words for source in words.split()[:-1]]
    assert sorted(allowed) == sorted(copied)
    assert all((ROOT / source).exists() for source in copied)
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines(), "all else stays outside"


def test_it_runs_as_a_number_that_is_not_root_s() -> None:
    users = [words for name, words in instructions(DOCKERFILE) if name == "USER"]
    assert users == ["10001:10001"]


def test_its_base_is_one_version_and_it_is_built_with_the_same() -> None:
    found = re.search(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+\.\d+)-slim-(\w+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found
    assert f"\nARG BUILD_IMAGE=python:{found[1]}-{found[2]}\n" in DOCKERFILE.read_text()


def test_the_last_stage_is_the_slim_one() -> None:
    stages = [words for name, words in instructions(DOCKERFILE) if name == "FROM"]
    assert ["-slim" in words for words in stages] == [False, True]


def test_no_step_installs_a_compiler() -> None:
    runs = " ".join(words for name, words in instructions(DOCKERFILE) if name == "RUN")
    assert not re.search(r"\b(apt|apt-get|apk|gcc|build-essential)\b", runs)
    assert "--only-binary=:all:" in runs


class Answering(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[type[Answering]]:
    handler = type("Handler", (Answering,), {})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        handler.port = str(server.server_port)  # type: ignore[attr-defined]
        yield handler
        server.shutdown()
        thread.join(10)


def healthy(**variables: str) -> subprocess.CompletedProcess[str]:
    # A proxy is for what leaves the machine.
    environ = {"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9", **variables}
    return subprocess.run([sys.executable, str(HEALTHCHECK)], env=environ, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", ""])  # noqa: S104 - what the service is told, not what listens
def test_the_health_check_asks_where_the_service_is(answering: type[Answering], host: str) -> None:
    ran = healthy(KV_INDEXER_HOST=host, KV_INDEXER_PORT=answering.port)  # type: ignore[attr-defined]
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_health_check_fails_on_another_status(answering: type[Answering]) -> None:
    answering.status = 503
    ran = healthy(KV_INDEXER_PORT=answering.port)  # type: ignore[attr-defined]
    assert ran.returncode == 1
    assert "503" in ran.stderr


def test_the_health_check_fails_in_one_line_where_nobody_answers() -> None:
    ran = healthy(KV_INDEXER_PORT=str(free_port()))
    assert ran.returncode == 1
    assert "ConnectionRefusedError" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_the_health_check_speaks_tls_where_the_service_does(answering: type[Answering]) -> None:
    with TlsFront(int(answering.port)) as front:  # type: ignore[attr-defined]
        ran = healthy(KV_INDEXER_PORT=str(front.port), KV_INDEXER_TLS_CERT="/tls/tls.crt")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert front.connections == 1
        assert healthy(KV_INDEXER_PORT=str(front.port)).returncode == 1


# Carried out


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return built(DOCKERFILE, ROOT, tmp_path_factory.mktemp("image"))


@pytest.mark.deploy
def test_hadolint_finds_nothing_to_object_to() -> None:
    assert tool("hadolint", "--no-color", str(DOCKERFILE)) == ""


@pytest.mark.deploy
@pytest.mark.timeout(300)
def test_its_steps_make_the_command(image: Image) -> None:
    assert image.run("--version").stdout == f"kv-indexer {importlib.metadata.version('kv-event-indexer')} (compiled core)\n"
    assert image.entrypoint[:1] == ["kv-indexer"]
    installed = {path.name.partition("-")[0] for path in image.folder.glob("opt/kv-indexer/lib/python*/site-packages/*.dist-info")}
    assert "kv_event_indexer" in installed
    assert not {"pip", "setuptools", "cython", "Cython", "pytest"} & installed


@pytest.mark.deploy
@pytest.mark.timeout(300)
def test_no_compiler_is_in_it(image: Image) -> None:
    """The build stage has one; what it made needs none."""
    for name in ("cc", "gcc", "g++", "clang", "make", "ld"):
        assert not (image.binaries / name).exists()
        assert not (image.folder / "opt/kv-indexer/bin" / name).exists()


class Served(Client):
    def __init__(self, port: int) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{port}"


@pytest.mark.deploy
@pytest.mark.timeout(300)
@pytest.mark.parametrize("confined", [False, True], ids=["free", "read-only"])
def test_its_roles_start_and_answer_and_its_health_check_sees_them(image: Image, confined: bool) -> None:
    if confined and not image.can_be_confined():
        pytest.skip("no user may make a mount namespace here")
    ports = [free_port(), free_port()]
    with Engine() as engine, RedisServer() as redis:
        engine.publish(stored([1], [1, 2, 3, 4]))
        roles = [["ingest", "--engine", engine.spec()], ["api"]]
        with (
            image.started(*roles[0], confined=confined, KV_INDEXER_REDIS=redis.url, KV_INDEXER_PORT=str(ports[0])) as ingest,
            image.started(*roles[1], confined=confined, KV_INDEXER_REDIS=redis.url, KV_INDEXER_PORT=str(ports[1])) as api,
        ):
            for port in ports:
                wait_until(lambda port=port: image.check(KV_INDEXER_PORT=str(port)) == 0, 30)
            client = Served(ports[1])
            wait_until(lambda: client.http.get(f"{client.url}/readyz").status_code == 200, 30)
            wait_until(lambda: client.http.get(f"{client.url}/v1/models").json()["models"] != [], 30)
            wait_until(lambda: client.matched([1, 2, 3, 4, 5]) == 4, 30)
            client.http.close()
            for process in (ingest, api):
                process.terminate()
                assert process.wait(20) == 0
        assert image.check(KV_INDEXER_PORT=str(ports[0])) == 1


@pytest.mark.deploy
@pytest.mark.timeout(300)
def test_a_demo_engine_is_in_it(image: Image) -> None:
    with image.started("demo-engine", "--pod", "demo-0") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("pod=demo-0,")


@pytest.mark.deploy
def test_it_listens_where_other_containers_reach_it(image: Image) -> None:
    assert image.environ["KV_INDEXER_HOST"] == "0.0.0.0"  # noqa: S104 - inside a container
