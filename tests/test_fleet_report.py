"""The page and the charts of `make fleet`."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.fleet import report
from bench.fleet.charts import Chart, svg
from bench.fleet.comparison import measure
from bench.fleet.report import Section, Table
from bench.fleet.runs import Case, play
from bench.fleet.scenarios import SCENARIOS
from bench.fleet.users import users_within
from scorer_api.fleet.policies import ROUTERS
from scorer_api.fleet.results import RunResult

SVG = "{http://www.w3.org/2000/svg}"


def places(chart: Chart) -> list[list[tuple[float, float]]]:
    """The points of each line, in pixels."""
    root = ElementTree.fromstring(svg(chart))  # noqa: S314 - made here
    return [[tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in root.iter(f"{SVG}polyline")]  # type: ignore[misc]


def test_a_line_goes_where_its_figures_are() -> None:
    (line,) = places(Chart("c", "t", "x", "y", {"one": [(0.0, 0.0), (5.0, 50.0), (10.0, 100.0)]}))
    (left, bottom), middle, (right, top) = line
    assert (left, bottom) == (64, 332)
    assert (right, top) == (620, 62)
    assert middle == pytest.approx(((left + right) / 2, (bottom + top) / 2))


def test_equal_factors_are_equal_distances_on_a_log_axis_and_zero_has_no_place() -> None:
    (line,) = places(Chart("c", "t", "x", "y", {"one": [(0.0, 0.0), (1.0, 0.1), (2.0, 1.0), (3.0, 10.0)]}, is_log=True))
    heights = [y for _, y in line]
    assert len(heights) == 3
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])


def test_the_page_needs_nothing_else_and_shows_names_as_they_are(tmp_path: Path) -> None:
    chart = Chart("line", "a < b", "x", "y", {"one & two": [(1.0, 2.0), (2.0, 3.0)]})
    page = report.write(tmp_path / "deep", [Section("A & B", "x < y", [Table("t", ["", "<n>"], [["`cost`", "1"]])], [chart])], "source")
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=|<script|@import|url\(""", text)
    assert {"A &amp; B", "x &lt; y", "&lt;n&gt;", "one &amp; two"} <= set(re.findall(r"A &amp; B|x &lt; y|&lt;n&gt;|one &amp; two", text))
    assert {path.name for path in page.parent.iterdir()} == {"index.html", "line.svg", "tables.md"}
    assert "| `cost` | 1 |" in (page.parent / "tables.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("times", "users"), [([0.5, 0.5, 2.0], 20 + 20 * 0.5 / 1.5), ([1.5, 0.5, 2.0], 0.0), ([0.1, 0.2, 0.3], 40.0), ([0.5, 1.5, 0.5], 15.0)]
)
def test_users_within_the_level_are_those_up_to_where_the_line_first_crosses_it(times: list[float], users: float) -> None:
    points = list(zip((10.0, 20.0, 40.0), times, strict=True))
    assert users_within(points, 1.0) == pytest.approx(users)


def test_every_scenario_is_made_of_its_seed() -> None:
    for scenario in SCENARIOS:
        one, same, other = (scenario.workload(seed=seed).first() for seed in (1, 1, 2))
        assert [(each.arrives_s, each.segments) for each in one] == [(each.arrives_s, each.segments) for each in same]
        assert [each.arrives_s for each in one] != [each.arrives_s for each in other]


def test_the_table_sets_the_best_of_all_others_against_cost() -> None:
    def result(ttft_s: float, rate: float) -> RunResult:
        return RunResult([ttft_s], rate, 0.5, 0.0, 1.0, 0, 1.0, [1], [1])

    figures = {"cost": result(1.0, 100.0), "random": result(2.0, 80.0), "round-robin": result(0.5, 50.0)}
    assert figures.keys() <= ROUTERS.keys()

    def known(title: str, cases: list[Case]) -> list[RunResult]:
        return [figures[case.policy] for case in cases]

    against, over_all, *_ = measure(known, SCENARIOS[1:2], tuple(figures)).tables  # type: ignore[arg-type]
    assert [row[1] for row in against.rows] == ["+100 %", "`round-robin`", "+25.0 %", "`random`"]
    assert over_all.rows[2] == ["`round-robin`", "0.50", "0.50", "1.0"]


def test_a_case_is_played_the_same_each_time() -> None:
    documents = next(scenario for scenario in SCENARIOS if scenario.name == "documents")
    assert play(Case(documents, "random")) == play(Case(documents, "random"))
