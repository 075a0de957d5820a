"""`kv-indexer top` in a real terminal, and where there is none."""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from scorer_api.cli.top_samples import Sample, figures, rows, totals_of
from scorer_api.client import PodStatus, StreamStatus
from tests.command import run
from tests.engine import Engine, removed, stored
from tests.ports import free_port
from tests.running import ROOT, Client, Command, Running
from tests.tls import CERTIFICATE
from tests.waiting import wait_until


def _take_terminal() -> None:
    """Make the terminal at standard input that of this session, so that Ctrl-C in it is a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """`with Terminal("top", …) as terminal:` the command in a terminal of 200 columns. `shown`: all that it wrote so far, without colours."""

    def __init__(self, *words: str) -> None:
        self._words = [sys.executable, "-m", "scorer_api.cli", *words]
        self._written = b""

    def __enter__(self) -> Self:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 200))
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}
        env = {key: value for key, value in env.items() if value and key != "NO_COLOR"}
        self.process = subprocess.Popen(
            self._words, cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=_take_terminal
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._theirs)
        self._reader.join(10)
        os.close(self._ours)

    def _read(self) -> None:
        with suppress(OSError):  # the other end was closed
            while piece := os.read(self._ours, 65536):
                self._written += piece

    @property
    def shown(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._written.decode(errors="replace"))

    @property
    def raw(self) -> bytes:
        return self._written

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, pattern: str) -> None:
        """Wait until this is shown that was not shown before the last wait."""
        start = getattr(self, "_seen", 0)
        wait_until(lambda: re.search(pattern, self.shown[start:]) or self.process.poll() is not None)
        assert re.search(pattern, self.shown[start:]), self.shown[start:]
        self._seen = len(self.shown)

    def is_as_before(self) -> bool:
        """Whether the terminal's modes are what they were."""
        return termios.tcgetattr(self._theirs) == self.before


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Client, Engine]]:
    """a holds two blocks; b is nowhere."""
    with Engine() as engine, Running(engine.spec("a"), f"pod=b,model=m,events=tcp://127.0.0.1:{free_port()}") as service:
        engine.publish(stored([1, 2], range(1, 9)))
        service.wait_for(pod="a", sequence=0, trust="live")
        yield service, engine


@pytest.mark.parametrize("end", ["q", "Q", "\x03"], ids=["q", "Q", "Ctrl-C"])
def test_it_shows_the_pods_and_ends_at_a_key(served: tuple[Client, Engine], end: str) -> None:
    service, engine = served
    with Terminal("top", "--url", service.url, "--interval-s", "0.1") as terminal:
        terminal.wait_for(r"2 pods, 1 of 2 streams live")
        terminal.wait_for(r"a +m +0 +live +gpu:2")
        assert re.search(r"b +m +0 +stale +gpu:0 ", terminal.shown)
        engine.publish(stored([3], range(9, 13), parent=2))
        engine.publish(removed([3]))
        terminal.wait_for(r"[1-9][\d.,]* blocks/s stored, [1-9][\d.,]* removed · lag \d")
        assert b"\x1b[?1049h" in terminal.raw, "it uses the other screen"
        assert not terminal.is_as_before()
        terminal.type(end)
        assert terminal.process.wait(30) == 0
        assert terminal.is_as_before()
        wait_until(lambda: b"\x1b[?1049l" in terminal.raw)
    assert "Traceback" not in terminal.shown


def test_it_ends_in_order_when_it_is_told_to(served: tuple[Client, Engine]) -> None:
    with Terminal("top", "--url", served[0].url, "--interval-s", "3600") as terminal:
        terminal.wait_for("streams live")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(30) == 0
        assert terminal.is_as_before()


def test_it_shows_how_much_of_the_prompts_is_held(served: tuple[Client, Engine]) -> None:
    """8 of 10 tokens asked about are held: what was asked before the first look does not count."""
    service, _ = served
    service.score([7] * 100)
    with Terminal("top", "--url", service.url, "--interval-s", "1") as terminal:
        terminal.wait_for("hit share -")
        service.score([*range(1, 9), 7, 7])
        terminal.wait_for("hit share 80%")


def test_it_survives_that_the_service_is_away(tmp_path: Path) -> None:
    port = str(free_port())
    with Terminal("top", "--url", f"http://127.0.0.1:{port}", "--interval-s", "0.1") as terminal:
        terminal.wait_for(rf"away: no answer from http://127.0.0.1:{port}")
        with Command("serve", "--port", port, "--engine", f"pod=a,model=m,events=tcp://127.0.0.1:{free_port()}") as service:
            service.wait_url()
            terminal.wait_for("1 pods, 0 of 1 streams live")
            service.kill()
        terminal.wait_for("away: ")
        assert terminal.process.poll() is None
        terminal.type("q")
        assert terminal.process.wait(30) == 0


@pytest.mark.parametrize("words", [(), ("--once",)], ids=["a pipe", "once"])
def test_where_there_is_no_terminal_it_prints_one_frame(served: tuple[Client, Engine], words: tuple[str, ...]) -> None:
    code, out, err = run("top", "--url", served[0].url, "--interval-s", "0.2", *words)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert re.search(r"^POD +MODEL +RANK +TRUST +BLOCKS +BATCHES/S +LAST BATCH", out, re.MULTILINE)
    assert re.search(r"^b +m +0 +stale .*\n^a +m +0 +live +gpu:2 +0 ", out, re.MULTILINE), "what needs looking at comes first"


def test_one_frame_in_a_terminal(served: tuple[Client, Engine]) -> None:
    with Terminal("top", "--once", "--interval-s", "0.1", "--url", served[0].url, "--model", "other") as terminal:
        assert terminal.process.wait(30) == 0
        terminal.wait_for("0 pods, 0 of 0 streams live")
        assert b"\x1b[?1049h" not in terminal.raw


def test_it_asks_by_tls_with_a_token(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("right-one\n")
    with Command(
        "serve",
        "--port",
        "0",
        "--tls-cert",
        str(CERTIFICATE),
        "--tls-key",
        str(CERTIFICATE.with_name("tls-key.pem")),
        "--api-token-file",
        str(tokens),
    ) as service:
        service.wait_url()
        words = ("top", "--once", "--interval-s", "0.1", "--url", service.url, "--ca-file", str(CERTIFICATE))
        code, out, err = run(*words, "--token-file", str(tokens))
        assert (code, err, "0 pods" in out) == (0, "", True)
        code, out, err = run(*words)
        assert (code, out, "--token-file" in err, len(err.splitlines())) == (1, "", True, 1)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--url", "ftp://h"), 2, "--url"),
        (("--token-file", "/no/such"), 2, "--token-file"),
        (("--interval-s", "0"), 2, "'0' should be a number above 0"),
        (("--once", "--url", "http://127.0.0.1:9"), 1, "no answer from http://127.0.0.1:9"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(words: tuple[str, ...], code: int, said: str) -> None:
    found, out, err = run("top", *words)
    assert (found, out, len(err.splitlines())) == (code, "", 1)
    assert said in err


def test_a_name_that_would_steer_the_terminal_is_shown_without_that() -> None:
    name = "x\x1b[31m[bold]"
    with Running() as other:
        body = {"model": "m", "events": "tcp://127.0.0.1:9"}
        other.http.put(f"{other.url}/v1/pods/x%1B[31m[bold]", json=body).raise_for_status()
        assert [pod["pod"] for pod in other.http.get(f"{other.url}/v1/pods").json()["pods"]] == [name]
        for command in ("top", "pods"):
            _, out, _ = run(command, "--url", other.url, *(("--interval-s", "0.1") if command == "top" else ()))
            assert "\x1b" not in out
            assert "x\ufffd[31m[bold]" in out


# Between two looks


def stream(rank: int = 0, batches: int = 0, trust: str = "live") -> StreamStatus:
    return StreamStatus(rank, None, trust, True, 16, {}, batches, 0, 0, 0, None, None)


def test_figures_are_what_grew_by_the_time_it_took() -> None:
    before = Sample(
        10.0,
        [],
        {"events_total": 5, "prompt_tokens_total": 100, "matched_tokens_total": 50, "event_age_seconds_sum": 1.0, "event_age_seconds_count": 4},
    )
    now = Sample(
        12.0,
        [],
        {"events_total": 9, "prompt_tokens_total": 300, "matched_tokens_total": 200, "event_age_seconds_sum": 1.5, "event_age_seconds_count": 14},
    )
    seen = figures(before, now)
    assert (seen.events_per_s, seen.hit_share, seen.lag_s) == (2.0, 0.75, 0.05)
    assert (seen.scores_per_s, seen.redis_up, seen.follower_age_s) == (None, None, None), "this role does not say"


def test_a_service_that_was_started_again_has_no_rates_yet() -> None:
    assert figures(Sample(1.0, [], {"events_total": 9}), Sample(2.0, [], {"events_total": 1})).events_per_s is None
    (row,) = rows(Sample(1.0, [PodStatus("a", "m", [stream(batches=9)])], {}), Sample(2.0, [PodStatus("a", "m", [stream(batches=1)])], {}))
    assert row.batches_per_s is None


def test_each_stream_has_its_rate() -> None:
    before = Sample(1.0, [PodStatus("a", "m", [stream(0, 10), stream(1, 10)])], {})
    now = Sample(3.0, [PodStatus("a", "m", [stream(0, 10), stream(1, 15, "stale"), stream(2, 7)])], {})
    assert [(row.stream.rank, row.batches_per_s) for row in rows(before, now)] == [(1, 2.5), (0, 0.0), (2, None)]


@pytest.mark.parametrize(
    ("totals", "redis_up"),
    [
        ({"redis_up": 0.0, "score_requests_total": 1.0}, None),
        ({"redis_up": 0.0, "score_requests_total": 1.0, "follower_age_seconds": 0.1}, False),
        ({"redis_up": 1.0}, True),
    ],
    ids=["embedded", "a scorer", "an indexer"],
)
def test_a_service_without_redis_does_not_miss_it(totals: dict[str, float], redis_up: bool | None) -> None:
    assert figures(None, Sample(1.0, [], totals)).redis_up == redis_up


def test_totals_are_summed_over_labels_and_ours_alone() -> None:
    text = 'a_total 1\nkv_indexer_events_total{kind="stored"} 2\nkv_indexer_events_total{kind="removed"} 3\nkv_indexer_redis_up 1\n'
    assert totals_of(text) == {"events_total": 5.0, "redis_up": 1.0}
