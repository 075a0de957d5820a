"""`kv-indexer doctor`, in processes of its own."""

import json
from pathlib import Path

import pytest

from scorer_api.doctor.checks.findings import finding
from scorer_api.doctor.checks.kinds import KINDS, Severity
from scorer_api.doctor.report import as_text
from tests.command import run
from tests.engine import Engine, stored
from tests.engine_server import EngineServer
from tests.ports import free_port
from tests.running import Running


def test_it_ends_with_0_where_nothing_is_worse_than_a_note_1_with_a_warning_3_with_an_error() -> None:
    with Engine() as engine, EngineServer(engine) as api, Running(engine.spec(http=api.url)) as service:
        engine.publish(stored([1], range(1, 5)))
        service.wait_for(sequence=0, trust="live")
        words = ("doctor", "--url", service.url, "--listen-s", "0.3")
        well = run(*words)
        api.block_size = 16
        warned = run(*words, "--json")
        api.prefix_caching = False
        wrong = run(*words, "--model", "m", "--pod", "pod")
    assert (well[0], well[2]) == (0, "")
    assert well[1].splitlines()[0].startswith("NOTE     pod pod: events_idle")
    assert well[1].splitlines()[-1] == "1 note, 4 ok"
    report = json.loads(warned[1])
    assert (warned[0], report["worst"], report["findings"][0]["code"]) == (1, "warning", "block_size_differs")
    assert set(report["findings"][0]) == {"code", "severity", "subject", "detail", "mend"}
    assert wrong[0] == 3
    assert "mend: start vLLM with --enable-prefix-caching" in wrong[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "x"], "--model"),
        (["--probe"], "--model"),
        (["--url", "ftp://x"], "--url"),
        (["--url", "http://"], "--url"),
        (["--listen-s", "0"], "--listen-s"),
        (["--listen-s", "nan"], "--listen-s"),
        (["--redis", "http://x"], "--redis"),
        (["--namespace", "a b"], "--namespace"),
        (["--token-file", "/no/such/file"], "--token-file"),
        (["--ca-file", "/no/such/file"], "--ca-file"),
    ],
)
def test_wrong_words_end_with_2_and_one_line(words: list[str], said: str) -> None:
    code, out, err = run("doctor", *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_no_service_ends_with_3_and_shows_no_password(tmp_path: Path) -> None:
    code, out, err = run("doctor", "--url", f"http://user:secret@127.0.0.1:{free_port()}")
    assert (code, err) == (3, "")
    assert "service_unreachable" in out
    assert "secret" not in out


def test_a_report_says_the_gravest_first_and_each_thing_once() -> None:
    findings = [finding("service_well", "service", "well"), finding("no_replay", "pod a", "none"), finding("no_pods", "service", "none")]
    text = as_text([*findings, findings[1]])
    assert [line.split()[0] for line in text.splitlines() if line and not line.startswith(" ")] == ["ERROR", "NOTE", "OK", "1"]
    assert text.splitlines()[-1] == "1 error, 1 note, 1 ok"


def test_everything_that_is_wrong_has_a_mend() -> None:
    assert [code for code, kind in KINDS.items() if kind.severity in (Severity.WARNING, Severity.ERROR) and not kind.mend] == []
