"""Recording what engines publish, and playing it as they would."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.command import run
from tests.engine import Engine, stored
from tests.engine_captures import CAPTURES, Capture, Played, matched_tokens, question
from tests.recorder import Process, count_of, frames_of
from tests.running import ROOT, Running
from tests.waiting import wait_until

DATA = Path(__file__).parents[2] / "data"
MAIN = DATA / "v028_bs16_main.frames.msgpack"
RESTART = DATA / "v028_bs16_pods_restart.frames.msgpack"
MESSAGES = {MAIN: 355, RESTART: 108}


@pytest.mark.parametrize("file", [MAIN, RESTART], ids=["one engine", "two engines that restart"])
def test_what_is_replayed_and_recorded_again_is_the_same(file: Path, tmp_path: Path) -> None:
    """Each engine's messages, byte for byte and in its order."""
    names = sorted({name for name, _ in frames_of(file)})
    out = tmp_path / "again"
    with Process("replay", file, "--speed", "max") as player:
        specs = [word for _ in names for word in ("--engine", player.line())]
        code, said, err = run("record", *specs, "--out", out, "--frames", str(MESSAGES[file]), "--seconds", "60")
    assert (code, err) == (0, "")
    again = frames_of(tmp_path / "again.frames.msgpack")
    assert len(again) == MESSAGES[file]
    for name in names:
        assert [frames for engine, frames in again if engine == name] == [frames for engine, frames in frames_of(file) if engine == name]
        assert f"{name}: {sum(engine == name for engine, _ in again)} messages, 0 gaps" in said


HYBRID = ("v028_gemma2_frontier_bs16", "v032_lfm2_unit_short", "v032_offgemma_bs32")


@pytest.mark.parametrize("capture", [capture for capture in CAPTURES if capture.name in HYBRID], ids=lambda capture: capture.name)
def test_a_hybrid_engine_that_was_recorded_is_predicted_when_it_is_replayed(capture: Capture, tmp_path: Path) -> None:
    """Recorded from a publisher, played into a service: every group of it counts as the engine itself counted."""
    frames = [frames for _, _, frames in capture.frames]
    out = tmp_path / "hybrid"
    with Engine() as engine, Process("record", "--engine", engine.spec("A", capture.name), "--out", out, "--frames", str(len(frames))) as recorder:
        wait_until(lambda: engine.subscriptions() > 0)
        for _, number, payload in frames:
            assert engine.publish_payload(payload) == int.from_bytes(number, "big")
        assert recorder.process.wait(60) == 0
    file = tmp_path / "hybrid.frames.msgpack"
    assert [found for _, found in frames_of(file)] == [[b"", *found[1:]] for found in frames]

    with Process("replay", file, "--steps", "--model", capture.name) as player, Running(player.line()) as service:
        service.wait_for(pod="A", connected=True)
        played, result = 0, Played()
        for request in capture.requests:
            if request["frames_before"] > played:
                played = request["frames_before"]
                player.step(str(played))
                service.wait_for(pod="A", sequence=played - 1)
            answer = service.http.post(f"{service.url}/v1/score", json=question(request, capture.name))
            assert answer.status_code == 200, answer.text
            result.add("replayed", request, matched_tokens(answer.json(), "A", "A"))
        assert len(service.stream("A")["groups"]) > 1
    assert result.compared["replayed"] == capture.rows
    assert result.wrong_kinds("replayed") == capture.unknowable, result.wrong


def test_replays_are_answered_after_the_end_and_recorded_whole(tmp_path: Path) -> None:
    with Process("replay", MAIN, "--speed", "max", "--at-once") as player:
        spec = player.line()
        assert player.process.stderr is not None
        assert "played 355 messages" in player.process.stderr.readline()
        code, _, err = run("record", "--engine", spec, "--out", tmp_path / "late", "--seconds", "2")
    assert (code, err) == (0, "")
    assert frames_of(tmp_path / "late.frames.msgpack") == []
    (exchange,) = msgspec.msgpack.decode((tmp_path / "late.replays.msgpack").read_bytes())
    assert (exchange["engine"], exchange["start"], exchange["note"], exchange["ended"]) == ("A", bytes(8), "from 0", True)
    replies = [frames for _, frames in exchange["replies"]]
    assert replies == [[b"", *frames] for _, frames in frames_of(MAIN)] + [[b"", b"", b"\xff" * 8, b""]]


def test_a_recording_that_began_late_has_the_history_and_plays_it(tmp_path: Path) -> None:
    """What the recorder learnt from a replay is in the history of the engine that plays the recording."""
    with Engine() as engine:
        for number in range(3):
            engine.publish(stored([number + 1], range(4 * number, 4 * number + 4)))
        with Process(
            "record",
            "--events",
            f"tcp://127.0.0.1:{engine.events_port}",
            "--replay",
            f"tcp://127.0.0.1:{engine.replay_port}",
            "--out",
            tmp_path / "r",
        ):
            wait_until(lambda: engine.subscriptions() and engine.asked)
            engine.publish(stored([4], range(12, 16)))
            engine.publish(stored([5], range(16, 20)), is_lost=True)
            engine.publish(stored([6], range(20, 24)))
            wait_until(lambda: (tmp_path / "r.replays.msgpack").exists() and count_of(tmp_path / "r.replays.msgpack") == 2)
    assert [int.from_bytes(frames[1], "big") for _, frames in frames_of(tmp_path / "r.frames.msgpack")] == [3, 5]
    with Process("replay", tmp_path / "r.frames.msgpack", "--speed", "max", "--model", "m") as player, Running(player.line()) as service:
        status = service.wait_for(pod="A", sequence=5, trust="live")
        assert (status["blocks"], status["batches"]) == ({"gpu": 6}, 6)
        assert service.matched(range(16, 21), pod="A") == 4, "the batch that was lost on the way"


def test_the_pace_is_that_of_the_recording(tmp_path: Path) -> None:
    """Two messages that came 1.5 s apart are 1.5 s apart again, at double speed half of it; upper bounds would depend on the machine."""
    file = tmp_path / "two.frames.msgpack"
    file.write_bytes(msgspec.msgpack.encode([[100.0, "A", [b"", bytes(8), b"x"]], [101.5, "A", [b"", bytes(7) + b"\1", b"y"]]]))
    for speed, apart_s in (("1.0", 1.5), ("2", 0.75)):
        out = tmp_path / speed
        with Process("replay", file, "--speed", speed) as player:
            code, *_ = run("record", "--engine", player.line(), "--out", out, "--frames", "2", "--seconds", "60")
        (first_s, *_), (second_s, *_) = msgspec.msgpack.decode(Path(f"{out}.frames.msgpack").read_bytes())
        assert code == 0
        assert second_s - first_s > apart_s - 0.1


def test_it_ends_after_the_last_message_where_that_is_asked_for() -> None:
    code, out, err = run("replay", RESTART, "--engine", "B", "--speed", "max", "--at-once", "--end")
    assert (code, len(out.splitlines())) == (0, 1)
    assert out.startswith("pod=B,model=tiny,events=tcp://127.0.0.1:")
    assert "played 48 messages" in err


# Limits


@pytest.fixture
def played() -> Iterator[str]:
    """The spec of an engine that plays 355 messages as soon as somebody listens."""
    with Process("replay", MAIN, "--speed", "max", "--without-replay") as player:
        yield player.line()


@pytest.mark.parametrize(("limit", "least", "most"), [(("--frames", "7"), 7, 7), (("--bytes", "20000"), 20, 100)])
def test_a_recording_ends_at_its_limit(played: str, tmp_path: Path, limit: tuple[str, str], least: int, most: int) -> None:
    code, _, err = run("record", "--engine", played, "--out", tmp_path / "r", *limit, "--seconds", "60")
    file = tmp_path / "r.frames.msgpack"
    assert (code, err) == (0, "")
    assert least <= len(frames_of(file)) <= most
    assert frames_of(file) == frames_of(MAIN)[: len(frames_of(file))]
    assert file.stat().st_size <= 20_000 or limit[0] == "--frames"
    assert not (tmp_path / "r.replays.msgpack").exists()


def test_a_recorder_that_is_told_to_stop_leaves_a_whole_file(played: str, tmp_path: Path) -> None:
    with Process("record", "--engine", played, "--out", tmp_path / "r") as recorder:
        recorder.wait_whole(tmp_path / "r.frames.msgpack", 300)
        assert recorder.stop() == 0
        said = recorder.line()
    kept = frames_of(tmp_path / "r.frames.msgpack")
    assert len(kept) >= 300
    assert kept == frames_of(MAIN)[: len(kept)]
    assert f"A: {len(kept)} messages, 0 gaps" in said


def test_a_recorder_that_is_killed_leaves_a_whole_file(played: str, tmp_path: Path) -> None:
    with Process("record", "--engine", played, "--out", tmp_path / "r") as recorder:
        recorder.wait_whole(tmp_path / "r.frames.msgpack", 355)
        recorder.process.kill()
        recorder.process.wait()
    assert frames_of(tmp_path / "r.frames.msgpack") == frames_of(MAIN)


def test_an_engine_that_is_never_reached_is_told_of(tmp_path: Path) -> None:
    code, out, err = run("record", "--events", "tcp://127.0.0.1:9", "--out", tmp_path / "r", "--seconds", "0.5")
    assert code == 1
    assert "A: 0 messages" in out
    assert "A was never reached: cannot connect to tcp://127.0.0.1:9" in err
    assert frames_of(tmp_path / "r.frames.msgpack") == []


# What is wrong


def test_a_full_disk_is_told_of_and_leaves_what_is_whole(played: str, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write that goes beyond it ends short, as on a full disk."""
    limit = 100_003
    done = subprocess.run(
        [sys.executable, "-m", "scorer_api.cli", "record", "--engine", played, "--out", tmp_path / "r", "--seconds", "60"],
        cwd=ROOT,
        # The limit would be one on what the measurement of coverage writes, too.
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "r.frames.msgpack cannot be written: File too large" in done.stderr
    kept = frames_of(tmp_path / "r.frames.msgpack")
    assert kept == frames_of(MAIN)[: len(kept)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["record", "--out", "x"], ["--engine", "--events"]),
        (["record", "--engine", "pod=a", "--out", "x"], ["--engine", "model is required"]),
        (["record", "--events", "udp://h", "--out", "x"], ["--events", "tcp://host:port"]),
        (["record", "--events", "tcp://127.0.0.1:9", "--replay", "tcp://127.0.0.1:9", "--out", "x"], ["for events and for replays"]),
        (["record", "--engine", "pod=a,model=m,events=tcp://127.0.0.1:9", "--replay", "tcp://h:1", "--out", "x"], ["--replay", "--events"]),
        (["record", "--engine", "pod=a,model=m,events=tcp://h:1", "--engine", "pod=a,model=n,events=tcp://h:2", "--out", "x"], ["differ"]),
        (["record", "--events", "tcp://127.0.0.1:9", "--out", "/no/such/folder/x"], ["--out", "/no/such/folder/x", "No such file or directory"]),
        (["record", "--events", "tcp://127.0.0.1:9", "--out", "x", "--frames", "0"], ["'0' should be a number above 0"]),
        (["replay", "/no/such.frames.msgpack"], ["/no/such.frames.msgpack", "No such file"]),
        (["replay", str(DATA / "captures.md")], ["captures.md", "is no capture"]),
        (["replay", str(DATA / "v028_bs16_main.replays.msgpack")], ["entry 0 should be [received_at_s, engine,"]),
        (["replay", str(MAIN), "--engine", "Z"], ["--engine", "'Z'", "engines there are A"]),
        (["replay", str(MAIN), "--speed", "0"], ["'0' should be max or a number above 0"]),
        (["replay", str(MAIN), "--host", "203.0.113.1"], ["--host", "cannot listen there"]),
        (["replay", str(RESTART), "--events-port", "65535"], ["--events-port", "too few ports for the engines"]),
    ],
)
def test_what_is_wrong_is_named_in_one_line(words: list[str], said: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert [word for word in said if word not in err] == []


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "r.frames.msgpack").write_text("precious")
    code, _, err = run("record", "--events", "tcp://127.0.0.1:9", "--out", tmp_path / "r", "--seconds", "1")
    assert (code, "exists already" in err) == (2, True)
    assert (tmp_path / "r.frames.msgpack").read_text() == "precious"


def test_a_port_that_is_taken_is_named() -> None:
    with Engine() as engine:
        code, _, err = run("replay", MAIN, "--events-port", str(engine.events_port))
    assert (code, len(err.splitlines())) == (2, 1)
    assert str(engine.events_port) in err


@pytest.mark.parametrize("line", ["fly", "-1", "stop", "stop Z", "1 2"])
def test_a_step_that_is_none_is_named(line: str) -> None:
    code, _, err = run("replay", MAIN, "--steps", "--at-once", "--end", stdin=line + "\n")
    assert code == 2
    assert "should be a number of messages, or stop or start and one of A" in err


def test_a_file_that_is_cut_short_is_played_as_far_as_it_goes(tmp_path: Path) -> None:
    content = MAIN.read_bytes()
    ends = _ends(content)
    file = tmp_path / "cut.frames.msgpack"
    file.write_bytes(content[: ends[9] + 5])
    code, _, err = run("replay", file, "--speed", "max", "--at-once", "--end")
    assert code == 0
    assert "5 bytes at its end are an incomplete entry" in err
    assert "played 10 messages" in err


def _ends(content: bytes) -> list[int]:
    """Where each entry ends: the entries are written again one by one."""
    entries: list[Any] = msgspec.msgpack.decode(content)
    at, ends = 3, []
    for entry in entries:
        at += len(msgspec.msgpack.encode(entry))
        ends.append(at)
    assert at == len(content)
    return ends
