"""The kv-indexer command, in processes of its own."""

import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from indexer import __version__
from indexer.compiled import ACTIVE
from scorer_api.cli.main import main
from tests.command import environment, run, start
from tests.engine import Engine, stored
from tests.engine_server import EngineServer, tokenize_bytes
from tests.running import Client, Command, Running
from tests.waiting import wait_until

ASKED = b'{"model": "m", "token_ids": [1, 2, 3, 4, 5]}'
STOP_S = 5
EVENTS = "tcp://127.0.0.1:9"


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    """a holds both blocks of 1 to 9, b the first one, on the cpu."""
    with Engine() as a, Engine() as b, Running(a.spec("a/long@name"), b.spec("b")) as service:
        a.publish(stored([1, 2], range(1, 9)))
        b.publish(stored([1], range(1, 5)))
        b.publish(stored([1], range(1, 5), medium="CPU"), {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": 0})
        service.wait_for(pod="a/long@name", sequence=0, trust="live")
        service.wait_for(pod="b", sequence=1, trust="live")
        yield service


# Words that are wrong


def test_version() -> None:
    assert run("--version", is_fresh=True) == (0, f"kv-indexer {__version__} ({ACTIVE} core)\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["serve", "--help"],
        ["score", "--help"],
        ["route", "--help"],
        ["explain", "--help"],
        ["pods", "--help"],
        ["demo", "--help"],
        ["demo-engine", "--help"],
        ["doctor", "--help"],
    ],
)
def test_help_goes_to_stdout(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(words)
    said = capsys.readouterr()
    assert (raised.value.code, said.err) == (0, "")
    assert said.out.startswith("usage: kv-indexer")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "--prot", "8081"], "kv-indexer serve: unrecognized arguments: --prot (did you mean --port?); see kv-indexer serve --help\n"),
        (["serve", "--admin-tokens-file=x"], "--admin-tokens-file (did you mean --admin-token-file?)"),
        (["score", "--modl", "m"], "kv-indexer score: unrecognized arguments: --modl (did you mean --model?)"),
        (["score", "--por", "--colour"], "kv-indexer score: unrecognized arguments: --por --colour; see"),
        (["--verison", "serve"], "kv-indexer: unrecognized arguments: --verison (did you mean --version?)"),
    ],
)
def test_an_unknown_flag_comes_with_the_one_that_was_meant(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where argparse would rather say that a flag is missing."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert (stopped.value.code, said in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize(
    ("words", "env", "said"),
    [
        (["--engine", "pod=a,model=m"], {}, ["--engine", "events is required"]),
        (["--engine", "nonsense"], {}, ["--engine", "'nonsense'", "key=value"]),
        (["--engine", f"pod=a,model=m,events={EVENTS},color=red"], {}, ["--engine", "'color'", "unknown key", "replay"]),
        (["--engine", f"pod=a,model=m,events={EVENTS},ranks=two"], {}, ["--engine", "ranks", "int"]),
        (["--engine", f"pod=a,model=m,events={EVENTS}", "--engine", f"pod=a,model=m,events={EVENTS}0"], {}, ["--engine", "'a'", "rank 0", "twice"]),
        (["--engine", f"pod=a,model=m,events={EVENTS}", "--engine", f"pod=a,model=n,events={EVENTS},rank=1"], {}, ["'a'", "'m'", "'n'"]),
        (["--engine", "pod=a,model=m,events=tcp://bad!host:9"], {}, ["events", "bad!host"]),
        (["--engine", "pod=a,model=m,events=ipc:///" + "x" * 200], {}, ["events", "too long"]),
        (["--log-format", "xml"], {}, ["--log-format", "'xml'", "text", "json"]),
        (["--pod-expiry-s", "soon"], {}, ["--pod-expiry-s", "'soon'"]),
        (["--pod-expiry-s", "-1"], {}, ["--pod-expiry-s", "'-1'", ">= 0.001"]),
        (["--lease-s", "1000001"], {}, ["--lease-s", "'1000001'", "<= 1000000"]),
        (["--streams-max", "0"], {}, ["--streams-max", "'0'", ">= 1"]),
        (["--reconnect-s", "1"], {}, ["--reconnect-s", "reconnect_s", "[limits]", "--config"]),
        ([], {"KV_INDEXER_RECONNECT_S": "1"}, ["KV_INDEXER_RECONNECT_S", "reconnect_s", "[limits]", "--config"]),
        (["--host", "no.such.host.invalid"], {}, ["--host", "no.such.host.invalid"]),
        ([], {"KV_INDEXER_ENGINES": "pod=a"}, ["KV_INDEXER_ENGINES", "model is required"]),
        ([], {"KV_INDEXER_COLOR": "red"}, ["KV_INDEXER_COLOR=***", "unknown"]),
        ([], {"KV_INDEXER_PORT": "http"}, ["KV_INDEXER_PORT", "'http'", "int"]),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_line(words: list[str], env: dict[str, str], said: list[str]) -> None:
    port = [] if "KV_INDEXER_PORT" in env else ["--port", "0"]
    code, out, err = run("serve", *port, *words, env=environment(**env))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert [word for word in said if word not in err] == []


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_port_that_is_taken_stops_the_start_with_one_line(command: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        code, out, err = run(command, "--port", str(port))
    lines = [line for line in err.splitlines() if line.startswith("kv-indexer:")]
    assert (code, out, len(lines)) == (2, "", 1)
    assert f"127.0.0.1:{port}" in lines[0]
    assert "in use; give another --port" in lines[0]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["serve", "--color", "red"], "arguments: --color;"),
        (["serve", "--log", "json"], "arguments: --log (did you mean --log-format or --log-level?);"),
        (["score"], "--model"),
        (["explain", "--model", "m"], "--tokens-file --prompt --messages-file"),
        (["score", "--model", "m", "--prompt", "x", "--tokens-file", "-"], "--tokens-file"),
        (["score", "--model", "m"], "--tokens-file --prompt --messages-file is required"),
        (["score", "--model", "m", "--prompt", "a", "--tokens-file", "-"], "not allowed with"),
        (["demo-engine", "--blocks", "0"], "'0' should be a number above 0"),
        (["demo-engine", "--chats", "1,x"], "'1,x' should be numbers"),
    ],
)
def test_unknown_words_exit_with_2_and_say_which_in_one_line(words: list[str], said: str) -> None:
    code, out, err = run(*words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


# Score


TABLE = [
    "model m, 9 tokens, best: a/long@name",
    "POD          SCORE   TOKENS  BLOCKS  TIERS  RANK  TRUST",
    "a/long@name  1.0000  8       2/2     gpu:2  0     live",
    "b            0.4000  4       1/2     cpu:1  0     live",
]


@pytest.mark.parametrize("text", ["[1, 2, 3, 4, 5, 6, 7, 8, 9]", "1 2 3\n4\t5 6\r\n7 8 9\n", " \n[1,2,3,4,5,6,7,8,9]\n"])
def test_score_prints_a_table(service: Client, tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    code, out, err = run("score", "--url", service.url, "--model", "m", "--tokens-file", str(file))
    assert (code, err, out.splitlines()) == (0, "", TABLE)


def test_route_prints_what_was_known_of_each_pod_and_leaves_nothing_behind(service: Client) -> None:
    words = ["--exclude", "b", "--output-tokens-expected", "0", "--policy", "prefix"]
    code, out, err = run("route", "--url", service.url, "--model", "m", "--tokens-file", "-", *words, stdin="1 2 3 4 5 6 7 8 9")
    assert (code, err) == (0, "")
    # What b costs depends on what it was sent before.
    assert re.sub(r"(?m)^(b +)0\.00\d s", r"\g<1>0.00? s", out).splitlines() == [
        "model m, 9 tokens: a/long@name rank 0, by prefix, for only_one",
        "POD          COST     MATCHED  UNCACHED  QUEUED  RUNNING  WAITING  KV  LOAD AGE  TRUST  WHY",
        "a/long@name  0.000 s  8        1         0       -        -        -   -         live   -",
        "b            0.00? s  4        5         0       -        -        -   -         live   excluded",
    ]
    assert service.metric("kv_indexer_route_open") == 0
    code, _, err = run("route", "--url", service.url, "--model", "m", "--tokens-file", "-", "--policy", "session", stdin="1")
    assert (code, err) == (1, "kv-indexer: session_id: the policy session needs one\n")


def test_score_reads_tokens_from_standard_input(service: Client) -> None:
    code, out, _ = run("score", "--url", service.url + "/", "--model", "m", "--tokens-file", "-", stdin="1 2 3 4 5 6 7 8 9")
    assert (code, out.splitlines()) == (0, TABLE)


def test_score_says_when_nothing_matches_and_keeps_to_the_limit(service: Client) -> None:
    code, out, _ = run("score", "--url", service.url, "--model", "m", "--limit", "1", "--tokens-file", "-", stdin="9 9 9 9 9")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert lines[0] == "model m, 5 tokens, best: none, nothing matches"
    assert lines[2].split() == ["a/long@name", "0.0000", "0", "0/1", "-", "0", "live"]


def test_explain_prints_why_each_match_ends(service: Client) -> None:
    code, out, err = run("explain", "--url", service.url, "--model", "m", "--tokens-file", "-", stdin="1 2 3 4 5 6 7 8 9")
    lines = out.splitlines()
    assert (code, err, lines[0]) == (0, "", "model m, 9 tokens from token_ids")
    assert lines[1].split() == ["POD", "SCORE", "TOKENS", "BLOCKS", "RUNNING", "WAITING", "KV", "TRUST", "WHY"]
    assert lines[2].split()[:8] == ["a/long@name", "1.0000", "8", "2/2", "-", "-", "-", "live"]
    assert lines[3].split()[:8] == ["b", "0.4000", "4", "1/2", "-", "-", "-", "live"]
    assert all(len(line.split()) > 11 for line in lines[2:4]), "a sentence"


def test_explain_prints_each_pod_s_load() -> None:
    metrics = b"vllm:num_requests_running 3.0\nvllm:num_requests_waiting 2.0\nvllm:kv_cache_usage_perc 0.25\n"
    with EngineServer(routes={"/metrics": lambda _: (200, metrics)}) as http, Engine() as engine, Running(engine.spec(http=http.url)) as service:
        service.wait_for(trust="live")
        words = ("explain", "--url", service.url, "--model", "m", "--tokens-file", "-")
        wait_until(lambda: run(*words, stdin="1 2 3 4 5")[1].splitlines()[2].split()[4:7] == ["3", "2", "25%"])


def test_pods_prints_every_stream(service: Client) -> None:
    code, out, err = run("pods", "--url", service.url, "--model", "m")
    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert lines[0][:7] == ["POD", "MODEL", "RANK", "TRUST", "BLOCKS", "BATCHES", "GAPS"]
    assert lines[1][:7] == ["a/long@name", "m", "0", "live", "gpu:2", "1", "0"]
    assert lines[2][:8] == ["b", "m", "0", "live", "gpu:0", "cpu:1", "2", "0"]
    assert len(run("pods", "--url", service.url, "--model", "other")[1].splitlines()) == 1, "the heads alone"


@pytest.mark.parametrize("more", [["--lora-name", "l"], ["--cache-salt", "s"]])
def test_score_passes_on_what_parts_prompts(service: Client, more: list[str]) -> None:
    code, out, _ = run("score", "--url", service.url, "--model", "m", "--tokens-file", "-", *more, stdin="1 2 3 4 5 6 7 8 9")
    assert (code, out.splitlines()[0]) == (0, "model m, 9 tokens, best: none, nothing matches")


CHAT = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def test_score_takes_a_prompt_and_a_chat(tmp_path: Path) -> None:
    with EngineServer(routes={"/tokenize": tokenize_bytes}) as api, Engine() as engine, Running(engine.spec(http=api.url)) as service:
        service.wait_for(connected=True)
        ask = ("score", "--url", service.url, "--model", "m")
        code, out, _ = run(*ask, "--prompt", "hello there")
        assert (code, out.splitlines()[0]) == (0, "model m, 11 tokens, best: none, nothing matches")
        assert api.tokenize_requests[-1] == {"model": "m", "prompt": "hello there", "add_special_tokens": True}
        file = tmp_path / "chat.json"
        file.write_text(json.dumps({"messages": CHAT, "tools": TOOLS, "add_generation_prompt": False}))
        assert run(*ask, "--messages-file", str(file))[0] == 0
        sent = api.tokenize_requests[-1]
        assert (sent["messages"], sent["tools"], sent["add_generation_prompt"]) == (CHAT, TOOLS, False)
        assert run(*ask, "--messages-file", "-", stdin=json.dumps(CHAT))[0] == 0
        assert api.tokenize_requests[-1]["messages"] == CHAT


@pytest.mark.parametrize("text", ["one two", "[1, 2", '["1"]', "[1.5]", "-1", "4294967296", '{"token_ids": [1]}', "1,2,3"])
def test_a_file_without_tokens_exits_with_2_and_one_line(service: Client, text: str) -> None:
    code, out, err = run("score", "--url", service.url, "--model", "m", "--tokens-file", "-", stdin=text)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "--tokens-file" in err
    assert "JSON list" in err


@pytest.mark.parametrize("text", ["hello", '"hi"', '{"role": "user"}', '{"messages": {}}', '{"messages": [], "more": 1}', "[" * 100_000])
def test_a_file_without_a_chat_exits_with_2_and_one_line(text: str) -> None:
    code, out, err = run("score", "--model", "m", "--messages-file", "-", stdin=text)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "should hold JSON: a list of messages, or an object with messages, tools" in err


def test_a_file_that_is_not_there_exits_with_2_and_names_it(service: Client) -> None:
    code, out, err = run("score", "--url", service.url, "--model", "m", "--tokens-file", "/no/such/file")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "/no/such/file" in err


def test_what_the_service_refuses_exits_with_1_and_its_reason(service: Client) -> None:
    code, out, err = run("score", "--url", service.url, "--model", "ghost", "--tokens-file", "-", stdin="1")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "'ghost' is not known" in err


def test_no_service_exits_with_1_and_names_the_address() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    code, out, err = run("score", "--url", url, "--model", "m", "--tokens-file", "-", stdin="1")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert url in err


def test_another_service_exits_with_1_and_asks_for_the_address(service: Client) -> None:
    code, out, err = run("score", "--url", f"{service.url}/docs?", "--model", "m", "--tokens-file", "-", stdin="1")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "Traceback" not in err


# Serving


def hold_request(url: httpx.URL) -> socket.socket:
    """A score request whose body the service waits for: it said so."""
    held = socket.create_connection((url.host, url.port or 80), timeout=20)
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(ASKED)}\r\nExpect: 100-continue\r\n\r\n"
    held.sendall(head.encode())
    assert b"100 Continue" in held.recv(4096)
    return held


def refuses_connections(url: httpx.URL) -> bool:
    try:
        socket.create_connection((url.host, url.port or 80), timeout=5).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_gets_its_answer_when_the_service_is_told_to_stop(number: signal.Signals) -> None:
    with Command("serve", "--port", "0", "--engine", f"pod=a,model=m,events={EVENTS}") as service:
        url = httpx.URL(service.wait_url().url)
        with closing(hold_request(url)) as held:
            held.sendall(ASKED[:10])
            service.process.send_signal(number)
            wait_until(lambda: refuses_connections(url))
            assert service.process.poll() is None
            held.sendall(ASKED[10:])
            answer = b""
            while piece := held.recv(4096):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"pod":"a"' in answer
        assert service.process.wait(STOP_S) == 0
    assert any("stopped" in line for line in service.lines)
    assert not any("Traceback" in line for line in service.lines)


def test_an_idle_connection_does_not_hold_the_service_up() -> None:
    with Command("serve", "--port", "0") as service, httpx.Client() as client:
        url = service.wait_url().url
        assert client.get(f"{url}/healthz").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOP_S) == 0


def test_a_request_that_never_comes_whole_does_not_hold_the_service_up_for_ever() -> None:
    with Command("serve", "--port", "0", "--shutdown-s", "1") as service, closing(hold_request(httpx.URL(service.wait_url().url))):
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOP_S) == 0
    assert not any("Traceback" in line for line in service.lines)


def test_with_the_default_settings_it_stops_in_time_too() -> None:
    with Engine() as engine, Command("serve", "--port", "0", "--engine", engine.spec()) as service:
        service.wait_url()
        engine.publish(stored([1], range(1, 5)))
        service.wait_for(sequence=0)
        with closing(hold_request(httpx.URL(service.url))):
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(STOP_S) == 0


def test_the_variables_make_the_same_service_and_flags_win() -> None:
    with Engine() as first, Engine() as second:
        engines = f"{first.spec('a/x:1@y')}; {second.spec('b')};"
        env = {"KV_INDEXER_ENGINES": engines, "KV_INDEXER_PORT": "0", "KV_INDEXER_LOG_FORMAT": "text", "KV_INDEXER_BODY_BYTES_MAX": "10"}
        with Command("serve", "--log-format", "json", "--body-bytes-max", "1000", env=env) as service:
            service.wait_url()
            assert [pod["pod"] for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]] == ["a/x:1@y", "b"]
            assert service.score([1])["tokens"] == 1
            service.wait_for(pod="a/x:1@y", trust="live")
    assert all(json.loads(line)["message"] for line in service.lines)


def test_a_services_standard_output_stays_empty() -> None:
    process = start("serve", "--port", "0", is_fresh=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert re.search(r"listening url=http://127\.0\.0\.1:\d+", line)
    assert (process.returncode, out) == (0, "")


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with Command("serve", "--host", "::1", "--port", "0") as service:
        assert service.wait_url().url.startswith("http://[::1]:")
        assert service.http.get(f"{service.url}/healthz").status_code == 200
