"""What a user can set, see, call or read as a reason is in the documentation, on the page where it belongs."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient
from msgspec import Struct
from prometheus_client import generate_latest

from docs.generator.pages import read_page, read_pages
from docs.generator.routes import routes
from docs.generator.settings import shown_default
from indexer.config.settings import Settings, fields, limit_fields
from indexer.core.names import Trust
from indexer.engines.spec import EngineSpec
from indexer.errors import REASONS
from indexer.http.worker_metrics import WorkerStates
from indexer.workers.board import WorkerBoard
from scorer_api.app import make_api, make_serve
from scorer_api.cli.main import COMMANDS
from scorer_api.client import ExplainAnswer, RouteAnswer, ScoreAnswer
from scorer_api.doctor.checks.kinds import KINDS
from scorer_api.explain.hints import HintCode
from scorer_api.explain.reasons import Reason
from scorer_api.routing.pick import EXCLUSIONS
from scorer_api.routing.policies import PICK_REASONS, POLICY_NAMES
from scorer_api.routing.speculative_scores import BLOCKS_OUTCOMES

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def documentation() -> str:
    return "\n".join(read_pages().values())


def missing(words: list[str], text: str) -> list[str]:
    """The words that do not appear, as whole words."""
    return [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of a table whose first cell is code, without the quotes of the first."""
    found = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return [[first.strip("`"), *others] for first, *others in found]


def section(text: str, heading: str) -> str:
    """What stands under a heading of the second level."""
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def paths(value: Any, before: str = "") -> set[str]:
    """The fields of a JSON value at every depth, with the values of those that hold no others."""
    match value:
        case dict():
            return set().union(*(paths(inner, f"{before}.{key}") for key, inner in value.items()))
        case list():
            return set().union(*(paths(inner, f"{before}[{index}]") for index, inner in enumerate(value)))
    return {f"{before}={value}"}


def served_metrics() -> set[str]:
    """Names of the metrics that the roles serve, as Prometheus shows them: a counter ends in _total."""
    found = set()
    redis = "redis://127.0.0.1:1/0"
    for make, settings in (
        (make_serve, Settings(gateway_listen="127.0.0.1:9002", discover=("pods:models?selector=app=vllm",), kube_api="http://127.0.0.1:1")),
        (make_serve, Settings(redis=redis)),
        (make_api, Settings(redis=redis)),
        (make_api, Settings(cells=("http://127.0.0.1:1",))),
    ):
        app = make(settings).app
        # Without its lifespan: nothing is started, and /metrics answers all the same.
        text = TestClient(app).get("/metrics").text
        found |= set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    states = generate_latest(WorkerStates(WorkerBoard(2))).decode()  # type: ignore[arg-type]  # what it uses of a registry
    return found | set(re.findall(r"^# TYPE (\w+)", states, re.MULTILINE))


def test_what_is_looked_for_is_there() -> None:
    assert {"kv_indexer_batches_total", "kv_indexer_streams", "kv_indexer_score_seconds"} <= served_metrics()
    assert {"/v1/score", "/v1/pods/{pod}", "/metrics"} <= {path for _, path, _ in routes()}
    assert missing(["--port"], "--port-range is another flag") == ["--port"]


def test_every_setting_is_there_with_its_default_and_meaning() -> None:
    shown = {flag: (default.strip("`"), meaning) for flag, default, _, meaning in rows(section(read_page("reference/settings.md"), "All settings"))}
    assert list(shown) == [field.flag for field in fields()]
    for field in fields():
        default, meaning = shown[field.flag]
        assert default == shown_default(field)
        assert meaning.replace("\\", "").replace("&#124;", "|") == field.description


def test_every_limit_is_there_with_its_default_and_meaning() -> None:
    shown = {name: (default.strip("`"), meaning) for name, default, _, meaning in rows(section(read_page("reference/settings.md"), "Limits"))}
    assert shown == {field.name: (shown_default(field), field.description) for field in limit_fields()}


def test_every_key_of_a_spec_is_there_and_no_other() -> None:
    keys = [key for key, *_ in rows(section(read_page("reference/settings.md"), "Engines"))]
    assert sorted(keys) == sorted(EngineSpec.__struct_fields__)


def test_the_ways_to_give_settings_are_there() -> None:
    assert missing(["KV_INDEXER_ENGINES", "KV_INDEXER_CONFIG", "KV_INDEXER_CORE", "--engine", "--config"], read_page("reference/settings.md")) == []


def test_every_command_is_there() -> None:
    headings = re.findall(r"^### `kv-indexer ([\w-]+)`$", read_page("reference/cli.md"), re.MULTILINE)
    assert list(COMMANDS) == headings


def test_a_command_s_flags_are_there_and_its_settings_are_not_repeated() -> None:
    page = read_page("reference/cli.md")
    assert missing(["--messages-file", "--probe", "--listen-s", "--without-replay", "--session-id", "--requests-per-s"], page) == []
    assert "--pod-expiry-s" not in page


def test_every_metric_that_is_served_is_there_and_no_other() -> None:
    assert {name for name, *_ in rows(section(read_page("reference/metrics.md"), "All metrics"))} == served_metrics()


def test_the_labels_of_a_metric_are_there_with_their_values() -> None:
    labels = {name: labels for name, _, _, labels in rows(section(read_page("reference/metrics.md"), "All metrics"))}
    assert labels["kv_indexer_denied_total"] == "`reason`: `no_token`, `wrong_token`, `not_admin`"
    assert labels["kv_indexer_streams"] == "`trust`"
    assert labels["kv_indexer_stream_last_batch_timestamp_seconds"] == "`model`<br>`engine_pod`<br>`rank`"


def test_every_outcome_of_a_request_is_explained() -> None:
    page = read_page("reference/metrics.md")
    explained = set(re.findall(r"`(\w+)`", section(page, "Values of labels")))
    for name, _, _, labels in rows(section(page, "All metrics")):
        for label, values in re.findall(r"`(\w+)`: ([^<]*)", labels):
            if label in ("outcome", "source", "why") or (label == "reason" and "redis" in name):
                assert set(re.findall(r"`(\w+)`", values)) - explained <= {"known", "unknown"}, name


def test_every_route_is_there() -> None:
    page = read_page("reference/http-api.md")
    assert {(method, path.strip("`")) for method, path, _ in re.findall(r"^\| ([A-Z]+) \| (`/.*?`) \| (.+) \|$", page, re.MULTILINE)} == {
        (method, path) for method, path, _ in routes()
    }
    assert missing(["/ui", "/docs", "/openapi.json"], page) == []
    assert missing([path for _, path, _ in routes() if path != "/v1/models"], section(page, "Health") + page) == []


@pytest.mark.parametrize(("heading", "kind"), [("POST /v1/score", ScoreAnswer), ("POST /v1/explain", ExplainAnswer), ("POST /v1/route", RouteAnswer)])
def test_an_answer_that_is_shown_has_the_fields_of_one(heading: str, kind: type[Struct]) -> None:
    (shown,) = re.findall(r"^```json\n(.*?)^```", section(read_page("reference/http-api.md"), heading), re.MULTILINE | re.DOTALL)
    answer = msgspec.json.encode(msgspec.json.decode(shown, type=kind))
    assert paths(msgspec.json.decode(shown)) - paths(msgspec.json.decode(answer)) == set()


def test_every_reason_of_a_refusal_is_there() -> None:
    shown = {reason: meaning for reason, meaning, _ in rows(section(read_page("reference/metrics.md"), "Refusals"))}
    assert list(shown) == list(REASONS)


def test_every_reason_and_hint_of_an_explanation_is_there_and_no_other() -> None:
    page = section(read_page("reference/http-api.md"), "POST /v1/explain")
    reasons, hints = (part.split("\n\n")[0] for part in page.split("| Meaning |")[1:])
    assert sorted(re.findall(r"`(\w+)`", "\n".join(line.split(" | ")[0] for line in reasons.splitlines()))) == sorted(Reason)
    assert sorted(row[0] for row in rows(hints)) == sorted(HintCode)


def test_every_word_of_a_pick_is_there(documentation: str) -> None:
    page = read_page("how-to/routing.md")
    assert missing([*(f"`{word}`" for word in (*POLICY_NAMES, *PICK_REASONS, *EXCLUSIONS))], page) == []
    assert missing([f"`{word}`" for word in BLOCKS_OUTCOMES], documentation) == []


def test_every_word_for_trust_is_explained() -> None:
    assert [word for word, *_ in rows(section(read_page("concepts.md"), "Trust"))] == [str(trust) for trust in Trust]


def test_no_metric_of_ours_in_the_documentation_is_made_up(documentation: str) -> None:
    suffixes = ("_bucket", "_count", "_sum")
    text = documentation + (ROOT / "README.md").read_text(encoding="utf-8")
    named = {re.sub("|".join(f"{suffix}$" for suffix in suffixes), "", name) for name in re.findall(r"\bkv_indexer_\w+", text)}
    assert named - served_metrics() == set()


def test_every_finding_of_the_doctor_is_there_as_it_is_and_no_other() -> None:
    shown = [
        [code, severity, *(text.replace("\\", "").replace("&#124;", "|") for text in texts)]
        for code, severity, *texts in rows(section(read_page("doctor.md"), "Findings"))
    ]
    assert shown == [[code, str(kind.severity), kind.meaning, kind.mend] for code, kind in KINDS.items()]


def test_every_finding_is_one_that_the_doctor_makes_and_the_other_way_round() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "scorer_api/doctor").rglob("*.py") if path.name != "kinds.py")
    assert [code for code in KINDS if f'"{code}"' not in sources] == []
    assert set(re.findall(r'finding\(\s*"(\w+)"', sources)) - set(KINDS) == set()


def test_the_gate_runs_what_people_are_told_to_run() -> None:
    (targets,) = re.findall(r"^make PYTHON=\S+ (.+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    told = "\n".join(path.read_text() for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists())
    assert f"make {targets}" in told
    assert {"lint", "types", "docs", "test"} <= set(targets.split())
