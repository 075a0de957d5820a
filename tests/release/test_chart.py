"""The packaged chart: the same files, the same bytes each time, and what Helm makes of it."""

import tarfile
from pathlib import Path

import pytest

from release import chart
from tests.deploy.manifests import CHART
from tests.running import ROOT


def test_the_package_has_the_chart_s_files_and_no_other(tmp_path: Path) -> None:
    package = chart.package(ROOT, "1.2.3", tmp_path, 1_700_000_000)
    assert package.name == "kv-indexer-1.2.3.tgz"
    with tarfile.open(package) as archive:
        members = archive.getmembers()
        assert members[0].name == "kv-indexer/Chart.yaml"
        for member in members:
            content = archive.extractfile(member)
            assert content is not None
            assert content.read() == (CHART.parent / member.name).read_bytes()
    wanted = {path.relative_to(CHART.parent).as_posix() for path in CHART.rglob("*") if path.is_file()} - {"kv-indexer/.helmignore"}
    assert {member.name for member in members} == wanted
    assert {(member.mtime, member.mode, member.uid, member.uname) for member in members} == {(1_700_000_000, 0o644, 0, "")}


def test_what_helm_ignores_is_left_out() -> None:
    ignored = set((CHART / ".helmignore").read_text().split())
    assert ignored == chart.LEFT_OUT - {".helmignore"} | {f"*{suffix}" for suffix in chart.LEFT_OUT_SUFFIXES}


def test_the_same_tree_makes_the_same_bytes(tmp_path: Path) -> None:
    first = chart.package(ROOT, "1.2.3", tmp_path, 1_700_000_000).read_bytes()
    assert chart.package(ROOT, "1.2.3", tmp_path, 1_700_000_000).read_bytes() == first
    assert chart.package(ROOT, "1.2.3", tmp_path, 1_700_000_001).read_bytes() != first


@pytest.mark.deploy
def test_helm_makes_the_same_of_the_package_as_of_the_folder(tmp_path: Path) -> None:
    from helm_python import Chart  # of the deploy extra

    values = {"redis": {"enabled": False}, "mode": "embedded", "discovery": {"selector": "app=vllm"}}
    rendered = []
    for path in (chart.package(ROOT, "1.2.3", tmp_path, 0), CHART):
        with Chart.load(str(path)) as loaded:
            rendered.append(loaded.render(values=values, name="kv-indexer", namespace="models"))
    assert rendered[0] == rendered[1]
    assert len(rendered[0]) > 3
