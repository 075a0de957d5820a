"""`kv-indexer simulate`, as a user types it."""

import json
from pathlib import Path

import pytest

from scorer_api.cli.main import main

SMALL = (
    "--pods",
    "3",
    "--groups",
    "6",
    "--prefix-tokens",
    "1000",
    "--prompt-tokens",
    "200",
    "--output-tokens",
    "20",
    "--rate",
    "4",
    "--seconds",
    "5",
)


def test_a_table_of_policies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *SMALL, "--policies", "cost,round-robin"]) == 0
    head, cost, turns = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["policy", "TTFT", "mean"]
    assert (cost.split()[0], turns.split()[0]) == ("cost", "round-robin")


def test_json_and_the_same_seed(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for _ in range(2):
        assert main(["simulate", *SMALL, "--policies", "cost", "--json", "--seed", "3"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    figures = json.loads(said[0])["cost"]
    assert figures["requests"] > 5
    assert 0 < figures["hit_share"] < 1
    assert figures["ttft_p50_s"] <= figures["ttft_p90_s"] <= figures["ttft_p99_s"]


def test_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"timestamp": 500 * number, "input_length": 1024, "output_length": 9, "hash_ids": [1, 1 + number % 2]} for number in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert main(["simulate", "--pods", "2", "--trace", str(path), "--requests", "10", "--policies", "cost", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["requests"] == 10


def test_users_who_chat(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--pods", "2", "--users", "4", "--think-s", "1", "--seconds", "20", "--policies", "session", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["session"]["requests"] >= 4


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--policies", "cost,best"], "--policies='best': is none; there are cost, prefix"),
        (["--trace", "/no/such/file"], "--trace='/no/such/file': cannot be read: No such file or directory"),
        (["--trace", "{file}"], "line 1"),
        (["--kv-tokens", "1000"], "--kv-tokens=1000: 1200 tokens and an answer do not fit into a pod of 1000"),
    ],
)
def test_a_mistake_is_named(words: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("{}\n")
    assert main(["simulate", *SMALL, *(word.format(file=tmp_path / "file") for word in words)]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert "Traceback" not in error
