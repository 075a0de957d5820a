"""One version, in pyproject.toml, and every file that repeats it."""

import importlib.metadata
import shutil
from pathlib import Path

import pytest
from fastapi.openapi.utils import get_openapi

import indexer
from indexer.config.settings import Settings
from release import versions
from release.changelog import UNRELEASED, sections
from release.errors import ReleaseError
from scorer_api.app import make_serve
from tests.running import ROOT


def copy_places(folder: Path) -> None:
    for place in versions.PLACES:
        (folder / place.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / place.path, folder / place.path)


def test_every_place_says_the_same() -> None:
    assert versions.differing(ROOT) == []


def test_the_package_the_service_and_openapi_say_it_too() -> None:
    app = make_serve(Settings()).app
    shown = get_openapi(title=app.title, version=app.version, routes=[])["info"]["version"]
    assert {versions.current(ROOT), indexer.__version__, importlib.metadata.version("kv-event-indexer"), shown} == {versions.current(ROOT)}


def test_the_changelog_s_newest_release_is_this_version() -> None:
    released = [heading for heading in sections((ROOT / "CHANGELOG.md").read_text()) if heading != UNRELEASED]
    assert released[0] == versions.current(ROOT)


def test_a_new_version_is_written_everywhere(tmp_path: Path) -> None:
    copy_places(tmp_path)
    versions.set_everywhere(tmp_path, "7.8.9")
    assert versions.current(tmp_path) == "7.8.9"
    assert versions.differing(tmp_path) == []
    written = {path: (tmp_path / path).read_text().count("7.8.9") for path in {place.path for place in versions.PLACES}}
    assert written == {path: (ROOT / path).read_text().count(versions.current(ROOT)) for path in written}


def test_a_place_that_was_forgotten_is_named(tmp_path: Path) -> None:
    copy_places(tmp_path)
    chart = tmp_path / "deploy/helm/kv-indexer/Chart.yaml"
    chart.write_text(chart.read_text().replace("appVersion: ", "appVersion: 9."))
    assert [said.partition(",")[0] for said in versions.differing(tmp_path)] == [f"{chart.relative_to(tmp_path)} says 9.{versions.current(ROOT)}"]


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "1.2.3-rc1", "1.2.3\n", ""])
def test_what_is_no_version_is_refused(tmp_path: Path, version: str) -> None:
    copy_places(tmp_path)
    with pytest.raises(ReleaseError, match=r"should be a version like 1\.2\.3"):
        versions.set_everywhere(tmp_path, version)
    assert versions.differing(tmp_path) == []
