"""The page at /ui without a browser: how it is served, what its files hold, and its colours."""

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from scorer_api.api.page import FILES
from tests.engine import Engine
from tests.processes import ingest
from tests.redis_server import RedisServer
from tests.running import ROOT, Client, Running

FOLDER = ROOT / "scorer_api" / "api" / "ui"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
SCRIPTS = {name: text for name, text in TEXTS.items() if name.endswith(".js")}
TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}

Rgb = tuple[float, float, float]


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    with Engine() as engine, Running(engine.spec()) as service:
        yield service


@pytest.mark.parametrize("path", sorted(FILES))
def test_each_file_is_served_under_a_strict_policy(service: Client, path: str) -> None:
    response = service.http.get(service.url + path)
    name = path.rpartition("/")[2] if path != "/ui" else "index.html"
    assert (response.status_code, response.text) == (200, TEXTS[name])
    assert response.headers["content-type"] == TYPES[name.rpartition(".")[2]]
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy == {
        **dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"), "'none'"),
        **dict.fromkeys(("script-src", "style-src", "img-src", "connect-src"), "'self'"),
        "require-trusted-types-for": "'script'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"
    head = service.http.head(service.url + path)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(response.content)))


def test_the_root_leads_to_it(service: Client) -> None:
    for method in ("GET", "HEAD"):
        response = service.http.request(method, f"{service.url}/")
        assert (response.status_code, response.headers["location"]) == (307, "ui")
    assert service.http.get(f"{service.url}/", follow_redirects=True).text == TEXTS["index.html"]


@pytest.mark.parametrize("path", ["/ui/nothing.js", "/ui/..%2fpage.py", "/ui/index.html", "/ui%2fmain.js%00"])
def test_there_is_nothing_else_below_it(service: Client, path: str) -> None:
    assert service.http.get(service.url + path).status_code == 404
    assert service.http.post(f"{service.url}/ui").status_code == 405


def test_an_indexer_has_no_page() -> None:
    with RedisServer() as redis, ingest(redis.url) as indexer:
        indexer.wait_url()
        assert indexer.http.get(f"{indexer.url}/ui").status_code == 404
        assert indexer.http.get(f"{indexer.url}/").headers["location"] == "docs"


def test_the_files_name_nothing_outside_and_nothing_that_is_not_there() -> None:
    assert set(TEXTS) == set(FILES.values())
    for name, text in TEXTS.items():
        assert set(re.findall(r"\w+:/[^\s\"'`)]+", text)) <= {"http://www.w3.org/2000/svg"}, name
        assert not re.search(r"""["'(]//""", text), name
        assert "@import" not in text, name
        assert "url(" not in text, name
    named = re.findall(r"""(?:href|src)="([^"#]+)\"""", TEXTS["index.html"])
    named += [f"ui/{name}" for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {f"/{name}" for name in named} | {"/ui"} == set(FILES)


def test_no_text_can_become_markup_or_script() -> None:
    for name, text in SCRIPTS.items():
        assert not re.search(
            r"\.(inner|outer)HTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|setTimeout\(\s*[\"'`]|srcdoc", text
        ), name
    page = TEXTS["index.html"]
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page)


def test_what_the_scripts_look_for_is_on_the_page() -> None:
    on_page = re.findall(r'\bid="([^"]+)"', TEXTS["index.html"])
    assert len(on_page) == len(set(on_page))
    assert {name for text in SCRIPTS.values() for name in re.findall(r'\bby\("([^"]+)"\)', text)} <= set(on_page)
    referred = re.findall(r'(?:for|list|aria-labelledby)="([^"]+)"', TEXTS["index.html"])
    referred += [name for names in re.findall(r'aria-describedby="([^"]+)"', TEXTS["index.html"]) for name in names.split()]
    assert set(referred) <= set(on_page)


def test_what_a_wheel_is_made_of_has_all_files(tmp_path: Path) -> None:
    """All of it but the compiled core, which takes longer than the rest."""
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {file.name: file.read_text() for file in (tmp_path / "scorer_api/api/ui").iterdir()} == TEXTS


# Colours: what WCAG 2.2 asks of contrast, and how they look to those who see fewer of them

TIERS = ("gpu", "cpu", "disk", "other", "remote")
WORDS = ("ink", "faint", "accent", "error", "good", "warn")
# Machado, Oliveira and Fernandes, 2009: matrices of full severity, for linear RGB.
SEEN = {
    "by all": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def colours(theme: str) -> dict[str, Rgb]:
    """The style's variables in linear RGB."""
    found = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\);", TEXTS["style.css"])
    return {name: linear(light if theme == "light" else dark) for name, light, dark in found}


def linear(digits: str) -> Rgb:
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return red, green, blue


def luminance(colour: Rgb) -> float:
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


def contrast(one: Rgb, other: Rgb) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def lab(colour: Rgb) -> Rgb:
    """CIELAB under D65."""
    red, green, blue = (min(1.0, max(0.0, part)) for part in colour)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    a, b, c = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in (x, luminance((red, green, blue)), z))
    return 116 * b - 16, 500 * (a - b), 200 * (b - c)


def seen(colour: Rgb, matrix: tuple[Rgb, ...]) -> Rgb:
    red, green, blue = (sum(weight * part for weight, part in zip(row, colour, strict=True)) for row in matrix)
    return lab((red, green, blue))


def test_the_arithmetic_of_colours_is_right() -> None:
    assert contrast(linear("000000"), linear("ffffff")) == pytest.approx(21)
    assert contrast(linear("767676"), linear("ffffff")) == pytest.approx(4.54, abs=0.01)
    assert lab(linear("ff0000")) == pytest.approx((53.2, 80.1, 67.2), abs=0.2)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_and_marks_stand_out(theme: str) -> None:
    found = colours(theme)
    assert set(found) == {"page", "card", "line", "edge", "track", "on-accent", *WORDS, *TIERS}
    words = [(word, ground) for word in WORDS for ground in ("page", "card")] + [("on-accent", "accent")]
    marks = [(mark, ground) for mark in (*TIERS, "error") for ground in ("card", "track")] + [("edge", "card"), ("accent", "page")]
    low = {pair: round(contrast(found[pair[0]], found[pair[1]]), 2) for pair in words if contrast(found[pair[0]], found[pair[1]]) < 4.5}
    low |= {pair: round(contrast(found[pair[0]], found[pair[1]]), 2) for pair in marks if contrast(found[pair[0]], found[pair[1]]) < 3}
    assert low == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("by_whom", sorted(SEEN))
def test_tiers_can_be_told_apart(theme: str, by_whom: str) -> None:
    """A distance of 20 in CIELAB is many times what is just noticeable."""
    found = colours(theme)
    distances = {pair: math.dist(*(seen(found[tier], SEEN[by_whom]) for tier in pair)) for pair in combinations(TIERS, 2)}
    assert min(distances.values()) > 20, distances


def test_every_colour_of_the_style_is_one_of_these() -> None:
    rules = re.sub(r"^:root \{.*?^\}", "", TEXTS["style.css"], flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"#[0-9a-f]{3,8}\b(?=[;,)\s])|rgb\(|hsl\(", re.sub(r"#[\w-]+(?=[^;{}]*\{)", "", rules))
