"""What is deployed beside the service speaks of what the service has."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from indexer.errors import LOSSY_REASONS
from scorer_api.cells.metrics import CellMetrics
from tests.engine import Engine, stored
from tests.ports import free_port
from tests.running import ROOT, Running

DASHBOARD = ROOT / "deploy/grafana/kv-indexer.json"
RULES = ROOT / "deploy/prometheus/kv-indexer-rules.yml"
RULES_TEST = ROOT / "deploy/prometheus/kv-indexer-rules-test.yml"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH; Debian's package prometheus has it")


def promtool(*words: str) -> None:
    ran = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60, check=False)  # noqa: S607 - it is found on the PATH
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def metrics() -> str:
    discovery = {"discover": "pods:models?selector=app=vllm", "kube_api": "http://127.0.0.1:1"}
    with Engine() as engine, Running(engine.spec(), gateway_listen=f"127.0.0.1:{free_port()}", **discovery) as service:
        engine.publish(stored([1], [1, 2, 3, 4]))
        service.wait_for(sequence=0)
        in_front = CollectorRegistry()
        CellMetrics(in_front, [service.url])
        return service.http.get(f"{service.url}/metrics").text + generate_latest(in_front).decode()


@pytest.mark.parametrize("path", [DASHBOARD, RULES], ids=lambda path: path.name)
def test_every_series_that_is_named_exists(path: Path, metrics: str) -> None:
    named = set(re.findall(r"\bkv_indexer_\w+", path.read_text()))
    shown = set(re.findall(r"^(kv_indexer_\w+)", metrics, re.MULTILINE))
    assert len(named) > 8
    assert named - shown == set()


def test_every_label_value_that_the_rules_name_exists(metrics: str) -> None:
    named = set(re.findall(r"kv_indexer_(\w+?)(?:_bucket|_total)?\{[^}]*?(trust|outcome|fate|reason|what|phase)=\"(\w+)\"", RULES.read_text()))
    assert named
    assert [(name, label, value) for name, label, value in named if not re.search(rf'kv_indexer_{name}\w*{{.*{label}="{value}"', metrics)] == []


def test_every_panel_says_what_it_shows() -> None:
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    assert len(panels) > 8
    assert [panel["title"] for panel in panels if not panel.get("description")] == []


def test_every_alert_says_what_to_do() -> None:
    rules = RULES.read_text().split("- alert: ")[1:]
    assert len(rules) >= 8
    assert [rule.partition("\n")[0] for rule in rules if "What to do:" not in rule or "severity:" not in rule] == []


@pytest.mark.parametrize("path", [DASHBOARD, RULES], ids=lambda path: path.name)
def test_every_label_that_is_named_exists(path: Path, metrics: str) -> None:
    text = path.read_text().replace('\\"', '"')
    grouped = re.findall(r"\b(?:by|without|on|ignoring) \(([\w, ]+)\)", text)
    named = {label for group in grouped for label in group.split(", ")}
    named |= set(re.findall(r'(\w+)(?:=|!=|=~|!~)"', text)) | set(re.findall(r"\$labels\.(\w+)", text)) | set(re.findall(r"{{(\w+)}}", text))
    shown = set(re.findall(r'[{,](\w+)="', metrics)) | {"job", "instance"}
    assert len(named) > 4
    assert named - shown == set()


def test_the_refusals_that_alert_at_once_are_those_that_lose_something() -> None:
    at_once, later = (set(reasons.split("|")) for reasons in re.findall(r'reason(?:=~|!~)"(.+?)"', RULES.read_text()))
    assert at_once == LOSSY_REASONS
    assert later == LOSSY_REASONS


@needs_promtool
def test_prometheus_accepts_the_rules() -> None:
    promtool("check", "rules", str(RULES))


@needs_promtool
def test_prometheus_accepts_its_configuration() -> None:
    promtool("check", "config", "--syntax-only", str(ROOT / "deploy/prometheus/prometheus.yml"))


@needs_promtool
def test_each_alert_fires_on_what_it_is_about_and_on_nothing_else() -> None:
    promtool("test", "rules", str(RULES_TEST))


@needs_promtool
def test_prometheus_accepts_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    queries = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", [])]
    rules = [{"record": f"query:{number}", "expr": query.replace("$__rate_interval", "5m")} for number, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # every JSON is YAML
    promtool("check", "rules", str(path))


def test_a_forgotten_pod_leaves_no_series() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        assert service.metric("kv_indexer_stream_last_batch_timestamp_seconds", engine_pod="pod") == 0
        engine.publish(stored([1], [1, 2, 3, 4]))
        service.wait_for(sequence=0)
        assert service.metric("kv_indexer_stream_last_batch_timestamp_seconds", engine_pod="pod") > 10**9
        service.http.delete(f"{service.url}/v1/pods/pod")
        assert 'engine_pod="pod"' not in service.http.get(f"{service.url}/metrics").text
