"""What a user can set, see, call or read as a reason is in the documentation."""

import re
from pathlib import Path

import pytest
from fastapi.openapi.utils import get_openapi
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings, fields
from indexer.core.names import Trust
from indexer.engines.spec import EngineSpec
from indexer.errors import REASONS
from indexer.metrics import HttpMetrics, IndexerMetrics
from scorer_api.app import make_serve
from scorer_api.doctor.kinds import KINDS
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics, ScorerMetrics, TokenMetrics
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.routing.policies import PICK_REASONS, POLICY_NAMES
from scorer_api.routing.router import BLOCKS_OUTCOMES, WHYS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def documentation() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))])


def missing(words: list[str], documentation: str) -> list[str]:
    """The words that do not appear, as whole words."""
    return [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", documentation)]


def metric_names() -> list[str]:
    """As Prometheus shows them: a counter ends in _total."""
    registry = CollectorRegistry()
    IndexerMetrics(registry)
    HttpMetrics(registry)
    view = View(Settings())
    ScorerMetrics(registry, view)
    TokenMetrics(registry)
    FollowerMetrics(registry, view)
    RouteMetrics(registry)
    return [family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()]


def route_paths() -> list[str]:
    app = make_serve(Settings()).app
    return list(get_openapi(title="", version="", routes=app.routes)["paths"])


def test_what_is_looked_for_is_there() -> None:
    assert {"kv_indexer_batches_total", "kv_indexer_streams", "kv_indexer_score_seconds"} <= set(metric_names())
    assert {"/v1/score", "/v1/pods/{pod}", "/metrics"} <= set(route_paths())
    assert missing(["--port"], "--port-range is another flag") == ["--port"]


def test_every_flag_is_documented(documentation: str) -> None:
    assert missing(["--engine", *(field.flag for field in fields())], documentation) == []


def test_the_default_of_every_setting_is_documented_on_its_line(documentation: str) -> None:
    wrong = []
    for field in fields():
        lines = [line for line in documentation.splitlines() if not missing([field.flag], line)]
        default = "none" if field.default in (None, ()) else field.default
        shown = {str(default), f"{default:g}" if isinstance(default, float) else f"{default}"}
        if isinstance(field.default, bool):
            shown = {str(field.default).lower()}
        elif isinstance(field.default, int):
            shown |= {f"{field.default:,}"}
        if lines and field.default != "" and not any(not missing([text], line) for line in lines for text in shown):
            wrong.append(f"{field.flag}: none of {sorted(shown)}")
    assert wrong == []


def test_every_key_of_a_spec_is_documented(documentation: str) -> None:
    assert missing(list(EngineSpec.__struct_fields__), documentation) == []


def test_the_variables_are_documented(documentation: str) -> None:
    assert "KV_INDEXER_ENGINES" in documentation


def test_every_metric_is_documented(documentation: str) -> None:
    assert missing(metric_names(), documentation) == []


def test_every_route_is_documented(documentation: str) -> None:
    assert missing([*route_paths(), "/ui", "/docs", "/openapi.json"], documentation) == []


def test_every_reason_of_a_refusal_is_documented(documentation: str) -> None:
    assert missing(list(REASONS), documentation) == []


def test_every_word_of_a_pick_is_documented(documentation: str) -> None:
    assert missing([*(f"`{word}`" for word in (*POLICY_NAMES, *PICK_REASONS, *WHYS, *BLOCKS_OUTCOMES))], documentation) == []


def test_every_word_for_trust_is_documented(documentation: str) -> None:
    assert missing([str(trust) for trust in Trust], documentation) == []


def test_no_metric_of_ours_in_the_documentation_is_made_up(documentation: str) -> None:
    suffixes = ("_bucket", "_count", "_sum")
    named = {re.sub("|".join(f"{suffix}$" for suffix in suffixes), "", name) for name in re.findall(r"\bkv_indexer_\w+", documentation)}
    assert named - set(metric_names()) == set()


def test_the_documentation_has_every_finding_of_the_doctor_as_it_is_and_no_other() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (ok|note|warning|error) \| (.*?) \| (.*?) ?\|$", (ROOT / "docs/doctor.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rows == [(code, str(kind.severity), kind.meaning, kind.mend) for code, kind in KINDS.items()]


def test_every_finding_is_one_that_the_doctor_makes_and_the_other_way_round() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "scorer_api/doctor").glob("*.py") if path.name != "kinds.py")
    assert [code for code in KINDS if f'"{code}"' not in sources] == []
    assert set(re.findall(r'finding\(\s*"(\w+)"', sources)) - set(KINDS) == set()
