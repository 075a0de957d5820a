"""HTTPS."""

import signal
import socket
import ssl
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.command import run
from tests.engine import Engine, stored
from tests.processes import serve
from tests.running import Command
from tests.tls import CERTIFICATE, DATA
from tests.waiting import wait_until

KEY = DATA / "tls-key.pem"
CERTIFICATE_2, KEY_2 = DATA / "tls-certificate-2.pem", DATA / "tls-key-2.pem"
"""Of another kind: RSA."""
CERTIFICATE_3, KEY_3 = DATA / "tls-certificate-3.pem", DATA / "tls-key-3.pem"
"""Of the first one's kind."""


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate))


def secured(*engines: str, **settings: str) -> Command:
    service = serve(None, *engines, **{"tls_cert": str(CERTIFICATE), "tls_key": str(KEY), **settings})
    service.http.close()
    service.http = httpx.Client(timeout=30, verify=trusting(CERTIFICATE))
    return service


def ready(service: Command) -> Command:
    service.wait_url()
    wait_until(lambda: service.http.get(f"{service.url}/healthz").status_code == 200)
    return service


def place(service: Command) -> tuple[str, int]:
    host, port = service.url.removeprefix("https://").split(":")
    return host, int(port)


def shown(service: Command) -> bytes | None:
    """The certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(place(service), timeout=30) as plain, context.wrap_socket(plain) as secure:
        return secure.getpeercert(binary_form=True)


def der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text())


@pytest.mark.rule("C6")
def test_the_service_speaks_tls_and_says_so() -> None:
    with Engine() as engine, secured(engine.spec()) as service:
        engine.publish(stored([1], [1, 2, 3, 4]))
        assert ready(service).url.startswith("https://127.0.0.1:")
        service.wait_for(sequence=0, trust="live")
        assert service.matched([1, 2, 3, 4, 5]) == 4
        body = {"model": "m", "token_ids": [1] * 200_000}
        assert service.http.post(f"{service.url}/v1/score", json=body).status_code == 200, "bodies of many records come whole"


@pytest.mark.rule("C6")
def test_nothing_older_than_tls_1_2_and_nothing_plain() -> None:
    with secured() as service:
        ready(service)
        with socket.create_connection(place(service), timeout=30) as plain:
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert not plain.recv(4096).startswith(b"HTTP")
        assert [speaks(service, version) for version in (b"\3\1", b"\3\2", b"\3\3")] == [False, False, True]
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(CERTIFICATE)
            context.minimum_version = context.maximum_version = version
            with socket.create_connection(place(service), timeout=30) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                assert str(secure.version()).replace(".", "_") == version.name
        assert not [line for line in service.lines if "ERROR" in line or "Traceback" in line]


def speaks(service: Command, version: bytes) -> bool:
    """Says hello in this version and no newer one, by hand: libraries refuse to say it in old ones."""
    suites = bytes.fromhex("c02bc023c009c013002f")  # ECDHE with AES and SHA-2 or SHA-1, and AES alone
    hello = version + bytes(32) + b"\0" + len(suites).to_bytes(2, "big") + suites + b"\1\0" + extensions()
    message = b"\1" + len(hello).to_bytes(3, "big") + hello
    with socket.create_connection(place(service), timeout=30) as plain:
        plain.sendall(b"\x16\3\1" + len(message).to_bytes(2, "big") + message)
        answer = plain.recv(4096)
    return answer[:1] == b"\x16"  # a record of the handshake; an alert is 0x15


def extensions() -> bytes:
    """supported_groups: x25519 and secp256r1; ec_point_formats: uncompressed; signature_algorithms: ECDSA and RSA with SHA-256, ECDSA with SHA-1."""
    groups, formats, signatures = bytes.fromhex("0004001d0017"), bytes.fromhex("0100"), bytes.fromhex("0006040304010203")
    each = [(10, groups), (11, formats), (13, signatures)]
    packed = b"".join(number.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body for number, body in each)
    return len(packed).to_bytes(2, "big") + packed


@pytest.mark.rule("C6")
def test_a_client_that_ends_its_side_of_tls_is_let_go_without_a_word() -> None:
    with secured() as service:
        ready(service)
        for _ in range(3):
            with (
                socket.create_connection(place(service), timeout=30) as plain,
                trusting(CERTIFICATE).wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += secure.recv(4096)
                secure.unwrap().close()
            # And before it has its answer, which it then need not get.
            with (
                socket.create_connection(place(service), timeout=30) as plain,
                trusting(CERTIFICATE).wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                with suppress(ssl.SSLError):
                    secure.unwrap()
        assert service.http.get(f"{service.url}/healthz").status_code == 200
        assert not [line for line in service.lines if "WARNING" in line or "ERROR" in line]


@pytest.mark.rule("C6")
@pytest.mark.parametrize(
    ("cert", "key", "said"),
    [
        (CERTIFICATE, None, ["--tls-cert", "needs --tls-key too"]),
        (None, KEY, ["--tls-key", "needs --tls-cert too"]),
        ("/no/such", KEY, ["--tls-cert", "/no/such", "cannot be read"]),
        (CERTIFICATE, "/no/such", ["--tls-key", "/no/such", "cannot be read"]),
        (KEY, KEY, ["--tls-cert and --tls-key", "PEM"]),
        (CERTIFICATE, CERTIFICATE, ["--tls-cert and --tls-key", "PEM"]),
        (CERTIFICATE, KEY_2, ["--tls-key", "is not the key of the certificate"]),
        (CERTIFICATE, KEY_3, ["--tls-key", "is not the key of the certificate"]),
        (DATA, KEY, ["--tls-cert", "cannot be read"]),
    ],
)
def test_files_that_do_not_fit_stop_the_start(cert: object, key: object, said: list[str]) -> None:
    files = {name: str(file) for name, file in (("tls_cert", cert), ("tls_key", key)) if file is not None}
    with serve(None, **files) as service:
        assert service.process.wait(30) == 2
    (line,) = service.lines
    assert [word for word in said if word not in line] == []
    assert "PRIVATE" not in line


@pytest.mark.rule("C6")
def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    header = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00112233445566778899AABBCCDDEEFF\n\n"
    path.write_text(f"-----BEGIN RSA PRIVATE KEY-----\n{header}{'QUJD' * 16}\n-----END RSA PRIVATE KEY-----\n")
    with serve(None, tls_cert=str(CERTIFICATE), tls_key=str(path)) as service:
        assert service.process.wait(30) == 2
    (line,) = service.lines
    assert "unencrypted private key" in line


def install(folder: Path, cert: Path, key: Path) -> dict[str, str]:
    """As tools that renew certificates do it: one file after the other, so that for a moment they do not fit."""
    for name, source in (("cert", cert), ("key", key)):
        new = folder / f"{name}.new"
        new.write_bytes(source.read_bytes())
        new.replace(folder / f"{name}.pem")
    return {"tls_cert": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}


@pytest.mark.rule("C7")
@pytest.mark.parametrize("is_signalled", [False, True], ids=["noticed", "SIGHUP"])
def test_a_renewed_certificate_is_shown_to_new_connections(tmp_path: Path, is_signalled: bool) -> None:
    with secured(**install(tmp_path, CERTIFICATE, KEY)) as service:
        ready(service)
        assert shown(service) == der(CERTIFICATE)
        install(tmp_path, CERTIFICATE_2, KEY_2)
        if is_signalled:
            service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: shown(service) == der(CERTIFICATE_2))
        assert service.http.get(f"{service.url}/healthz").status_code == 200, "the connection from before stays"
        install(tmp_path, CERTIFICATE_3, KEY_3)
        wait_until(lambda: shown(service) == der(CERTIFICATE_3))
        install(tmp_path, CERTIFICATE_2, KEY_2)
        wait_until(lambda: shown(service) == der(CERTIFICATE_2))
        assert httpx.get(f"{service.url}/healthz", verify=trusting(CERTIFICATE_2)).status_code == 200


@pytest.mark.rule("C7")
def test_files_that_do_not_fit_change_nothing_and_are_told_of_once(tmp_path: Path) -> None:
    with secured(**install(tmp_path, CERTIFICATE, KEY)) as service:
        ready(service)

        def told() -> list[str]:
            return [line for line in service.lines if "certificate not read again" in line]

        install(tmp_path, CERTIFICATE_2, KEY)
        wait_until(told)
        for _ in range(3):
            service.process.send_signal(signal.SIGHUP)
            assert shown(service) == der(CERTIFICATE)
        assert httpx.get(f"{service.url}/healthz", verify=trusting(CERTIFICATE)).status_code == 200
        install(tmp_path, CERTIFICATE_2, KEY_2)
        wait_until(lambda: shown(service) == der(CERTIFICATE_2))
        assert len(told()) == 1


@pytest.mark.rule("C6")
def test_score_asks_by_tls_with_a_token(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# ours\nsecret-token\nanother\n")

    def score(*words: str, url: str = "") -> tuple[int, str]:
        code, out, err = run("score", "--url", url or service.url, "--model", "m", "--tokens-file", "-", *words, stdin="1 2 3 4 5")
        assert "secret-token" not in out + err
        return code, out + err

    with Engine() as engine, secured(engine.spec(), api_token_file=str(tokens)) as service:
        engine.publish(stored([1], [1, 2, 3, 4]))
        ready(service)
        service.http.headers["Authorization"] = "Bearer secret-token"
        service.wait_for(sequence=0, trust="live")
        trusted = ("--ca-file", str(CERTIFICATE))
        code, said = score(*trusted, "--token-file", str(tokens))
        assert (code, "best: pod" in said) == (0, True), said
        code, said = score(*trusted)
        assert (code, "--token-file" in said) == (1, True), said
        code, said = score("--token-file", str(tokens))
        assert (code, "certificate" in said.lower()) == (1, True), said
        for words, key in (
            ((*trusted, "--token-file", "/no/such"), "--token-file"),
            (("--ca-file", "/no/such"), "--ca-file"),
            (("--ca-file", str(KEY)), "--ca-file"),
        ):
            code, said = score(*words)
            assert (code, key in said, len(said.splitlines())) == (2, True, 1), said
        code, said = score(*trusted, url=service.url.replace("https://", "https://me:secret-token@").replace("127.0.0.1", "127.0.0.2"))
        assert (code, "***" in said) == (1, True), said
