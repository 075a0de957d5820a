"""`make docs` fails for what would be broken on the site."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs.generator.log_events import log_events
from docs.generator.markdown import cell, table
from docs.generator.pages import UnknownPart, expand
from tests.running import ROOT


def build(folder: Path, pages: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Build a site of these pages, `index.md` alone in its navigation, as `make docs` builds ours."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    docs = folder / "docs"
    docs.mkdir()
    for name, text in pages.items():
        (docs / name).write_text(text)
    config |= {"docs_dir": str(docs), "site_dir": str(folder / "site"), "nav": ["index.md"], "extra_css": []}
    config["hooks"] = [str(ROOT / hook) for hook in config["hooks"]]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config))
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(folder / "mkdocs.yml")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


def test_a_sound_site_is_built_with_its_generated_parts(tmp_path: Path) -> None:
    built = build(tmp_path, {"index.md": "# A\n\n[B](#b)\n\n## B\n\n<!-- generated: settings -->\n"})
    assert built.returncode == 0, built.stdout + built.stderr
    page = (tmp_path / "site/index.html").read_text()
    assert "<code>--pod-expiry-s</code>" in page
    assert "<!-- generated" not in page


def test_a_site_with_a_broken_link_is_not_built(tmp_path: Path) -> None:
    built = build(tmp_path, {"index.md": "# A\n\n[gone](gone.md)\n\n[nowhere](#nowhere)", "lost.md": "# Lost"})
    assert built.returncode != 0
    said = built.stdout + built.stderr
    assert "'gone.md'" in said, said
    assert "#nowhere" in said, said
    assert "lost.md" in said, "a page outside the navigation"


def test_a_site_with_an_unknown_part_is_not_built(tmp_path: Path) -> None:
    built = build(tmp_path, {"index.md": "<!-- generated: nothing -->"})
    assert built.returncode != 0
    assert "index.md: nothing generates 'nothing'" in built.stdout + built.stderr


def test_parts_stand_in_the_place_of_their_markers() -> None:
    assert expand("before\n<!-- generated: settings -->\nafter").splitlines()[1].startswith("| Flag |")
    with pytest.raises(UnknownPart, match=r"known are .*settings"):
        expand("<!-- generated: setings -->")


def test_text_in_a_table_is_not_markup() -> None:
    assert table(["A"], [[cell("a|b *c* `d_e` <f> [g]")]]).splitlines()[-1] == "| a&#124;b \\*c\\* `d_e` \\<f> \\[g] |"


def test_log_events_have_their_levels_and_fields() -> None:
    events = {event.message: event for event in log_events()}
    assert (events["engine restarted"].level, events["engine restarted"].fields) == ("info", ("pod", "rank", "sequence"))
    assert events["following failed"].level == "error"
