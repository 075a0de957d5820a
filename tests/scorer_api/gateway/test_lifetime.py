"""The endpoint picker from its start to its end: certificates, a port that is taken, an extra that is missing, and draining."""

import shutil
import ssl
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from indexer.errors import SettingError
from tests import ext_proc
from tests.command import environment
from tests.ext_proc import DESTINATION, FULL_DUPLEX, REQUEST_BODY, REQUEST_HEADERS, RESPONSE_BODY, RESPONSE_HEADERS
from tests.gateway import Gateway
from tests.ports import free_port
from tests.running import ROOT, Running
from tests.settings import settings_of
from tests.waiting import wait_until

DATA = ROOT / "tests/data"
SPEC = "pod=127.0.0.1:8001,model=m,events=tcp://127.0.0.1:1"
BODY = b'{"model": "m"}'
ENDPOINT = "127.0.0.1:8001"


def running(port: int, **flags: str) -> Running:
    quick = {"load_interval_s": "0", "ready_after_s": "0.001", "gateway_notice_s": "0.001"}
    return Running(SPEC, gateway_listen=f"127.0.0.1:{port}", **{**quick, **flags})


def test_a_certificate_of_files_is_presented_and_a_renewed_one_as_well(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(DATA / "tls-certificate.pem", cert)
    shutil.copy(DATA / "tls-key.pem", key)
    port = free_port()

    def picks_with(authority: bytes) -> bool:
        with Gateway(port, authority) as gateway:
            return gateway.pick(BODY).set[DESTINATION] == ENDPOINT

    with running(port, gateway_tls_cert=str(cert), gateway_tls_key=str(key)):
        assert picks_with(cert.read_bytes())
        with Gateway(port) as plain, pytest.raises(grpc.RpcError):
            plain.channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=2)
        shutil.copy(DATA / "tls-key-2.pem", key)
        shutil.copy(DATA / "tls-certificate-2.pem", cert)
        newest = cert.read_bytes()
        wait_until(lambda: ssl.get_server_certificate(("127.0.0.1", port)).split() == newest.decode().split())
        assert picks_with(newest)


def test_a_certificate_is_made_for_gateways_that_check_none() -> None:
    port = free_port()
    with running(port, gateway_self_signed="true"):
        made = ssl.get_server_certificate(("127.0.0.1", port)).encode()
        with Gateway(port, made, "kv-indexer") as gateway:
            assert gateway.pick(BODY).set[DESTINATION] == ENDPOINT


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ({"gateway_listen": "9002"}, "--gateway-listen='9002': should be host:port"),
        ({"gateway_listen": "0.0.0.0:70000"}, "should be host:port"),
        ({"gateway_self_signed": "true"}, "--gateway-listen"),
        ({"gateway_listen": "[::1]:9002", "gateway_tls_cert": "c"}, "needs --gateway-tls-key too"),
        ({"gateway_listen": "[::1]:9002", "gateway_tls_cert": "c", "gateway_tls_key": "k", "gateway_self_signed": "true"}, "does not go with"),
    ],
)
def test_flags_that_do_not_fit_stop_the_start(flags: dict[str, str], what: str) -> None:
    with pytest.raises(SettingError) as error:
        settings_of(flags)
    assert what in str(error.value)


def test_files_that_are_no_certificate_stop_the_start(tmp_path: Path) -> None:
    with (
        pytest.raises(SettingError, match="--gateway-tls-cert"),
        running(1, gateway_tls_cert=str(tmp_path / "no"), gateway_tls_key=str(tmp_path / "no")),
    ):
        pass


def test_a_port_that_is_taken_stops_the_start() -> None:
    port = free_port()
    with running(port), pytest.raises(SettingError, match="--gateway-listen"), running(port):
        pass


@pytest.mark.parametrize(("library", "flags"), [("h2", ()), ("cryptography", ("--gateway-self-signed",))])
def test_without_the_extra_one_line_says_what_to_install(library: str, flags: tuple[str, ...]) -> None:
    words = ["serve", "--port", "0", "--gateway-listen", "127.0.0.1:0", *flags]
    script = f"import sys; sys.modules[{library!r}] = None; from scorer_api.cli.main import main; sys.exit(main({words!r}))"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert ran.stderr.strip().endswith("pip install 'kv-event-indexer[gateway]'")
    assert len(ran.stderr.strip().splitlines()) == 1


def test_a_gateway_that_only_asks_ends_the_call_and_not_the_request() -> None:
    """NGINX Gateway Fabric: no protocol_config, values as texts, one body, and a half-close before it reads. The router has to forget the request."""
    port = free_port()
    with running(port, route_forget_s="1.5") as service, Gateway(port) as gateway:
        call = gateway.call()
        call.send(ext_proc.headers(REQUEST_HEADERS, {":path": "/v1/completions", ":method": "POST"}, name=2))
        call.send(ext_proc.body(REQUEST_BODY, BODY, is_end=True))
        first, piece = call.end()
        assert (first.set[DESTINATION], piece.body) == (ENDPOINT, BODY)
        assert service.metric("kv_indexer_route_open") == 1
        assert service.metric("kv_indexer_gateway_calls_total", outcome="unanswered") == 1
        wait_until(lambda: service.metric("kv_indexer_route_open") == 0)


def test_health_waits_until_the_service_is_ready() -> None:
    port = free_port()
    with running(port, ready_after_s="600"), Gateway(port) as gateway:
        assert (gateway.health("readiness"), gateway.health("liveness")) == (2, 1)
        assert gateway.pick(BODY).set[DESTINATION] == ENDPOINT


def test_a_service_that_ends_says_so_and_takes_calls_a_while_and_ends_none(caplog: pytest.LogCaptureFixture) -> None:
    """An answer that passes through is whole, however long after the signal it ends."""
    caplog.set_level("INFO")
    port = free_port()
    service = running(port, gateway_notice_s="1.0", gateway_drain_s="30")
    with Gateway(port) as gateway, service:
        assert gateway.health() == 1
        call = gateway.call()
        call.ask(BODY, response=FULL_DUPLEX)
        call.reply()
        service.begin_to_stop()
        wait_until(lambda: gateway.health() == 2)
        assert gateway.health("liveness") == 1
        assert gateway.pick(BODY).set[DESTINATION] == ENDPOINT
        wait_until(lambda: is_refused(port))
        assert "stopped" not in caplog.messages
        call.send(ext_proc.headers(RESPONSE_HEADERS, {":status": "200"}))
        for number in range(20):
            time.sleep(0.02)
            call.send(ext_proc.body(RESPONSE_BODY, str(number).encode(), is_end=number == 19))
        assert call.reply().kind == 2
        assert b"".join(reply.body for reply in call.end()) == b"".join(str(number).encode() for number in range(20))
    assert "stopped" in caplog.messages


def test_calls_that_outlast_the_drain_are_ended() -> None:
    port = free_port()
    with Gateway(port) as gateway:
        with running(port, gateway_notice_s="0.1", gateway_drain_s="0.3"):
            call = gateway.call()
            call.ask(BODY)
        with pytest.raises(grpc.RpcError):
            call.end()


def is_refused(port: int) -> bool:
    """Whether a new connection gets no answer."""
    with Gateway(port) as gateway:
        try:
            gateway.channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=1)
        except grpc.RpcError:
            return True
    return False
