"""What `make release` makes, installed in an environment of its own outside of the repository: `make test-deploy`."""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from release import build, versions
from release.errors import ReleaseError
from tests.ports import free_port
from tests.running import ROOT
from tests.waiting import wait_until

VERSION = versions.current(ROOT)
INSTALL_S = 300
README = (ROOT / "README.md").read_text()


def test_a_wheel_without_the_compiled_core_is_no_release(tmp_path: Path) -> None:
    wheel = tmp_path / "kv_event_indexer-1.2.3-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("indexer/compiled/__init__.py", "")
    with pytest.raises(ReleaseError, match="has no compiled core"):
        build.check_core(wheel)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "dist"
    build.build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin of an environment with the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=INSTALL_S)
    told = re.search(r"^pip install (kv-event-indexer)$", README, re.MULTILINE)
    assert told, "the README says how to install it"
    words = [str(folder / "bin/pip"), "install", "--quiet", "--only-binary=:all:", "--find-links", str(dist), f"{told[1]}=={VERSION}"]
    subprocess.run(words, cwd=folder, check=True, timeout=INSTALL_S)
    return folder / "bin"


@pytest.fixture(scope="module")
def demo(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the installed demo."""
    port, folder = free_port(), tmp_path_factory.mktemp("cwd")
    with subprocess.Popen([str(installed / "kv-indexer"), "demo", "--port", str(port)], cwd=folder, env=outside(installed)) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_ready(url), 60, "the demo to be ready")
            yield url
        finally:
            process.terminate()
            process.wait(30)


def outside(installed: Path) -> dict[str, str]:
    return {"PATH": f"{installed}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/")}


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").json()["status"] == "ready"
    except httpx.TransportError:
        return False


def shell(command: str, installed: Path, folder: Path) -> str:
    ran = subprocess.run(["bash", "-ec", command], cwd=folder, env=outside(installed), capture_output=True, text=True, timeout=60, check=False)  # noqa: S607
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.deploy
@pytest.mark.timeout(600)
def test_all_of_it_is_made_with_its_checksums(dist: Path) -> None:
    names = {path.name for path in dist.iterdir()}
    wheel = next(name for name in names if name.endswith(".whl"))
    assert re.fullmatch(rf"kv_event_indexer-{VERSION}-cp311-abi3-\w+\.whl", wheel)
    assert names == {
        *(wheel, f"kv_event_indexer-{VERSION}.tar.gz", f"kv-event-indexer-{VERSION}.cdx.json", f"kv-indexer-{VERSION}.tgz", "SHA256SUMS"),
    }
    sums = dict(line.split()[::-1] for line in (dist / "SHA256SUMS").read_text().splitlines())
    assert sums == {name: hashlib.sha256((dist / name).read_bytes()).hexdigest() for name in names - {"SHA256SUMS"}}


@pytest.mark.deploy
@pytest.mark.timeout(600)
def test_the_list_of_components_is_that_of_the_image(dist: Path) -> None:
    listed = json.loads((dist / f"kv-event-indexer-{VERSION}.cdx.json").read_text())
    pinned = re.findall(r"^([\w.-]+)==([^ ;]+)", (ROOT / "deploy/requirements.txt").read_text(), re.MULTILINE)
    assert (listed["bomFormat"], listed["metadata"]["component"]["version"]) == ("CycloneDX", VERSION)
    assert sorted((part["name"], part["version"]) for part in listed["components"]) == sorted(pinned)
    assert all(part["externalReferences"][0]["hashes"] for part in listed["components"])


@pytest.mark.deploy
@pytest.mark.timeout(600)
def test_the_wheel_has_the_compiled_core_and_the_version(installed: Path, tmp_path: Path) -> None:
    assert shell("KV_INDEXER_CORE=compiled kv-indexer --version", installed, tmp_path) == f"kv-indexer {VERSION} (compiled core)\n"


@pytest.mark.deploy
@pytest.mark.timeout(600)
def test_the_readme_s_score_is_what_the_installed_command_says(demo: str, installed: Path, tmp_path: Path) -> None:
    found = re.search(r"^\$ (\(seq .*?)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found
    command = found[1].replace(".venv/bin/", "") + f" --url {demo}"
    wait_until(lambda: shell(command, installed, tmp_path) == found[2], 30, "the answer to be that of the README")


@pytest.mark.deploy
@pytest.mark.timeout(600)
def test_the_readme_s_request_and_page_are_answered(demo: str, installed: Path, tmp_path: Path) -> None:
    command = re.search(r"^\$ (curl .*)$", README, re.MULTILINE)
    assert command
    answer = json.loads(
        shell(command[1].replace("127.0.0.1:8080", demo.removeprefix("http://")).replace("my/model", "demo/chat"), installed, tmp_path)
    )
    assert (answer["model"], answer["tokens"]) == ("demo/chat", 3)
    assert "<title>" in httpx.get(f"{demo}/ui", follow_redirects=True).text


@pytest.mark.deploy
@pytest.mark.timeout(600)
def test_every_command_of_the_readme_is_one(installed: Path, tmp_path: Path) -> None:
    commands = set(re.findall(r"^(?:\.venv/bin/)?kv-indexer (\w+)", README, re.MULTILINE))
    assert {"serve", "ingest", "api"} <= commands
    for command in sorted(commands):
        assert shell(f"kv-indexer {command} --help", installed, tmp_path).startswith("usage: kv-indexer")
