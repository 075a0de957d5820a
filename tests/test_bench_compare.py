"""`make bench-compare` on files as `make bench` writes them."""

from pathlib import Path

import msgspec
import pytest

from bench import compare, report
from bench.against import Against
from bench.floors import Floor
from bench.ingest import Ingest
from bench.memory import Memory
from bench.provenance import Provenance
from bench.scoring import Scoring

MACHINE = Provenance("2026-01-01T00:00:00+00:00", "abc", "3.11.7", "Linux", "A CPU", 2, (0.1, 0.1, 0.1), "compiled", {})


def written(path: Path, provenance: Provenance = MACHINE, *, rate: int = 1_000, p99_ms: float = 2.0, here: float = 10.0) -> Path:
    """What a run writes whose figures are these."""
    scoring = [
        Scoring("json", blocks, 8, requests=7, p50_ms=1.0, p50_best_ms=0.9, p99_ms=p99_ms, requests_per_s=rate, cpu_us_per_request=500)
        for blocks in (128, 512)
    ]
    results = {
        "ingest": [Ingest("64-block events", 64, 300_000, 1, 2, 3.0, 2.9)],
        "scoring": scoring,
        "memory": [Memory(10, 8, 60.0, 70.0, 250.0)],
        "against-llmd": [Against("look-up", "CPU", "µs", here, 100.0, 10.0)],
        "floors": [Floor("a floor", 1.0, "FAIL")],
    }
    report.write(path, provenance, results)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = compare.main([str(word) for word in words])
    out, error = capsys.readouterr()
    return code, out, error


def test_a_run_is_equal_to_itself_and_to_one_within_the_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path / "a"), written(tmp_path / "b", rate=900, p99_ms=2.7, here=11.0)
    for other in (a, b):
        code, out, _ = run(capsys, "--a", a, "--b", other)
        assert code == 0
        assert "0 worse, 0 better, 12 equal" in out


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [({"rate": 800}, 1, "2 worse, 0 better"), ({"rate": 1_300}, 0, "0 worse, 2 better"), ({"here": 13.0}, 1, "1 worse, 0 better")],
)
def test_what_is_outside_the_noise_is_shown_and_decides_the_exit_code(
    changed: dict[str, int], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, _ = run(capsys, "--a", written(tmp_path / "a"), "--b", written(tmp_path / "b", **changed))  # type: ignore[arg-type]  # figures by name
    assert (found, said in out) == (code, True), out


def test_the_spread_of_several_runs_is_their_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [written(tmp_path / f"a{number}", rate=rate) for number, rate in enumerate((700, 1_000, 1_100))]
    slower = written(tmp_path / "b", rate=800)
    assert run(capsys, "--a", *before, "--b", slower)[0] == 0
    assert run(capsys, "--a", before[1], "--b", slower)[0] == 1


def test_rows_that_only_one_side_has_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path / "a"), written(tmp_path / "b")
    document = msgspec.json.decode(b.read_bytes())
    document["results"]["scoring"].pop()
    b.write_bytes(msgspec.json.encode(document))
    code, out, _ = run(capsys, "--a", a, "--b", b, "--all")
    assert code == 0
    assert "only in A: scoring, json blocks=512 connections=8" in out


def test_another_machine_version_or_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = written(tmp_path / "a")
    other = written(tmp_path / "other", msgspec.structs.replace(MACHINE, core="python"))
    code, _, error = run(capsys, "--a", a, "--b", other)
    assert (code, "different core: compiled, python" in error) == (2, True)
    assert run(capsys, "--a", a, "--b", other, "--anyway")[0] == 0
    older = tmp_path / "older"
    older.write_bytes(msgspec.json.encode({key: value for key, value in msgspec.json.decode(a.read_bytes()).items() if key != "version"}))
    code, _, error = run(capsys, "--a", older, "--b", a, "--anyway")
    assert (code, f"{older} is version None of the file" in error) == (2, True)
    for content in (b"", b"[]", b'{"version": 1}', b"\xff"):
        older.write_bytes(content)
        assert run(capsys, "--a", a, "--b", older)[0] == 2
    assert run(capsys, "--a", a, "--b", tmp_path / "missing")[0] == 2
