"""The doctor and the service: one misconfiguration each, and a fleet with nothing to complain about."""

from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from scorer_api.cli.service_connection import trusted_context
from tests.engine import Engine, stored
from tests.engine_server import EngineServer
from tests.ports import free_port
from tests.running import Running
from tests.scorer_api.doctor.examined import Examined
from tests.tls import CERTIFICATE, DATA

PROMPT = "one two three four five six seven eight nine"


@pytest.fixture
def fleet() -> Iterator[Running]:
    """Two engines in perfect health; a holds the prompt's two blocks, both hold its first."""
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine(topic=f"kv@{pod}@m".encode())) for pod in "ab"]
        apis = [stack.enter_context(EngineServer(engine)) for engine in engines]
        tokens = apis[0].tokens(PROMPT)
        service = stack.enter_context(Running(*(engine.spec(pod, http=api.url) for pod, engine, api in zip("ab", engines, apis, strict=True))))
        engines[0].publish(stored([1, 2], tokens[:8]))
        engines[1].publish(stored([1], tokens[:4]))
        for pod in "ab":
            service.wait_for(pod=pod, sequence=0, trust="live")
        yield service


def test_a_healthy_fleet_has_nothing_to_complain_about(fleet: Running) -> None:
    found = Examined(fleet.url, model="m", prompt=PROMPT, probes=True)
    assert (found.bad(), found.exit_code) == (set(), 0)
    assert {"service_well", "stream_well", "engine_well", "replay_well", "prompt_matches", "probe_well"} <= set(found.codes)
    assert found.codes.count("explained") == 2
    assert "a holds 8 of 9 tokens" in found.the("prompt_matches").detail


def test_a_prompt_that_nobody_has_seen(fleet: Running) -> None:
    found = Examined(fleet.url, model="m", prompt="quite other words that nobody has ever seen before")
    assert found.the("prompt_unmatched").detail == "none of 2 pods holds anything of its 9 tokens"
    assert found.the("hint").detail.startswith("nothing_matches: ")
    assert found.exit_code == 1


def test_a_prompt_that_is_too_short_for_a_block(fleet: Running) -> None:
    found = Examined(fleet.url, model="m", prompt="one two three four")
    assert found.the("prompt_too_short").detail == "it has 4 tokens; it takes 5 for a block of 4 to match"
    assert found.exit_code == 0


def test_a_model_that_nobody_serves_names_one_that_is_like_it(fleet: Running) -> None:
    found = Examined(fleet.url, model="M1")
    assert "'m'" in found.the("pod_unknown").detail
    assert (found.bad(), found.exit_code) == ({"pod_unknown"}, 3)


def test_a_pod_that_is_not_registered(fleet: Running) -> None:
    found = Examined(fleet.url, pods=("a", "ghost"))
    assert found.the("pod_unknown").subject == "pod ghost"
    assert (found.bad(), found.exit_code) == ({"pod_unknown"}, 3)
    assert not any(each.subject == "pod b" for each in found.findings)


def test_no_service() -> None:
    found = Examined(f"http://127.0.0.1:{free_port()}")
    assert (found.codes, found.exit_code) == (["service_unreachable"], 3)


class Other(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"status": "UP"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_another_service() -> None:
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        found = Examined(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert (found.codes, found.exit_code) == (["service_other"], 3)


def test_a_service_without_pods() -> None:
    with Running() as service:
        found = Examined(service.url)
    assert (found.bad(), found.exit_code) == ({"no_pods"}, 3)


def test_tls_with_a_certificate_of_an_unknown_authority_and_without_tls() -> None:
    secured = Running(tls_cert=str(CERTIFICATE), tls_key=str(DATA / "tls-key.pem"))
    secured.http.close()
    secured.http = httpx.Client(timeout=30, verify=trusted_context(str(CERTIFICATE)))
    with secured as service:
        untrusted = Examined(service.url)
        plain = Examined(service.url.replace("https", "http"))
        trusted = Examined(service.url, verify=trusted_context(str(CERTIFICATE)))
    assert (untrusted.codes, untrusted.exit_code) == (["service_tls"], 3)
    assert (plain.codes, plain.exit_code) == (["service_tls"], 3)
    assert trusted.bad() == {"no_pods"}


def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("right\n")
    with Engine() as engine, EngineServer(engine) as api, Running(engine.spec(http=api.url), api_token_file=str(file)) as service:
        service.http.headers["Authorization"] = "Bearer right"
        engine.publish(stored([1], range(1, 5)))
        service.wait_for(sequence=0, trust="live")
        without, wrong, right = (Examined(service.url, token=token) for token in (None, "wrong", "right"))
    assert without.the("token_wrong").detail.endswith("without a token")
    assert (without.bad(), without.exit_code) == ({"token_wrong"}, 3)
    assert (wrong.bad(), wrong.exit_code) == ({"token_wrong"}, 3)
    assert (right.bad(), right.exit_code) == (set(), 0)


def test_the_token_goes_to_the_service_and_to_nobody_else() -> None:
    heard = []

    class Listening(Other):
        def do_GET(self) -> None:
            heard.append(self.headers["Authorization"])
            super().do_GET()

    with (
        Engine() as engine,
        HTTPServer(("127.0.0.1", 0), Listening) as server,
        Running(engine.spec(http=f"http://127.0.0.1:{server.server_port}")) as s,
    ):
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        Examined(s.url, token="secret")  # noqa: S106 - made up
        server.shutdown()
    assert heard
    assert set(heard) == {None}


def test_a_service_that_is_not_ready_yet_and_the_reason() -> None:
    with Running(f"pod=pod,model=m,events=tcp://127.0.0.1:{free_port()}", ready_after_s="600") as service:
        found = Examined(service.url)
    assert "pod" in found.the("service_degraded").detail
    assert found.bad() == {"service_degraded", "events_unreachable"}
    assert found.exit_code == 3


def test_refused_events_are_told_by_reason() -> None:
    with Engine() as engine, EngineServer(engine) as api, Running(engine.spec(http=api.url)) as service:
        engine.publish({"type": "BlockStored", "block_hashes": "none"})
        engine.publish(stored([1], range(1, 5)))
        service.wait_for(sequence=1)
        found = Examined(service.url)
    assert any("event_malformed 1" in each.detail for each in found.findings if each.code == "events_refused")
    assert "events_refused" in found.bad()
    assert found.exit_code == 1
