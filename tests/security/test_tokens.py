"""Bearer tokens: who may ask, and who may change pods."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scorer_api.api import page
from tests.engine import Engine, stored
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer
from tests.running import Command
from tests.waiting import wait_until

API, OTHER, ADMIN, WRONG = "api-token.1", "api-token.2", "admin+token==", "wrong"
SPEC = {"model": "m", "events": "tcp://127.0.0.1:9"}
ASKED = {"model": "m", "token_ids": [1, 2, 3, 4, 5]}
# Method, path, body: everything there is, and something that there is not.
ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/v1/score", ASKED),
    ("GET", "/v1/pods", None),
    ("PUT", "/v1/pods/x", SPEC),
    ("DELETE", "/v1/pods/x", None),
    ("GET", "/v1/models", None),
    ("GET", "/metrics", None),
    ("GET", "/docs", None),
    ("GET", "/openapi.json", None),
    ("GET", "/nothing", None),
    ("GET", "/ui/", None),
    ("GET", "/ui/nothing.js", None),
    ("GET", "/ui/..%2fmetrics", None),
    ("GET", "/healthz/", None),
    ("GET", "//healthz", None),
    ("GET", "/healthz%2f..%2fmetrics", None),
]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def ask(service: Command, method: str, path: str, body: Any = None, token: str | None = None) -> httpx.Response:
    return service.http.request(method, service.url + path, json=body, headers={} if token is None else bearer(token))


def write(path: Path, *tokens: str) -> str:
    """As Kubernetes does it: a new file in the old one's place."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{token}\n" for token in tokens))
    new.replace(path)
    return str(path)


def ready(service: Command) -> Command:
    service.wait_url()
    wait_until(lambda: service.http.get(f"{service.url}/healthz").status_code == 200)
    return service


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        engine.publish(stored([1], [1, 2, 3, 4]))
        yield engine


@pytest.fixture(scope="module", params=["serve", "ingest", "api"])
def guarded(request: pytest.FixtureRequest, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """Each role with both kinds of token."""
    folder = tmp_path_factory.mktemp("tokens")
    files = {"api_token_file": write(folder / "api", API, OTHER), "admin_token_file": write(folder / "admin", ADMIN)}
    with RedisServer() as redis:
        starting = {
            "serve": lambda: serve(None, engine.spec(), **files),
            "ingest": lambda: ingest(redis.url, engine.spec(), **files),
            "api": lambda: api(redis.url, **files),
        }[request.param]()
        with starting as service:
            yield ready(service)


def check_refused(response: httpx.Response) -> None:
    assert (response.status_code, response.headers["content-type"]) == (401, "application/problem+json")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["status"] == 401
    assert "Authorization" in response.json()["detail"]


@pytest.mark.rule("C1")
@pytest.mark.parametrize("token", [None, WRONG])
def test_everything_but_health_needs_a_token(guarded: Command, token: str | None) -> None:
    for method, path, body in ROUTES:
        check_refused(ask(guarded, method, path, body, token))


@pytest.mark.rule("C1")
def test_what_is_not_quite_a_token_is_none(guarded: Command) -> None:
    almost = [
        "",
        "Bearer",
        f"Basic {API}",
        API,
        f"Bearer {API}x",
        f"Bearer {API[:-1]}",
        f"Bearer {API} {API}",
        "Bearer " + "x" * 10_000,
        "Bearer \u00e9",
    ]
    for authorization in almost:
        check_refused(guarded.http.get(f"{guarded.url}/v1/pods", headers={"Authorization": authorization.encode()}))


@pytest.mark.rule("C1")
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_needs_none(guarded: Command, method: str, path: str) -> None:
    assert guarded.http.request(method, guarded.url + path).status_code in (200, 503)
    assert guarded.http.request(method, guarded.url + path, headers=bearer("wrong")).status_code in (200, 503)


@pytest.mark.rule("C1")
@pytest.mark.parametrize("token", [None, WRONG])
def test_the_page_needs_none_where_there_is_one(guarded: Command, token: str | None) -> None:
    is_there = guarded.words[0] != "ingest"
    for path in sorted(page.PATHS):
        assert ask(guarded, "GET", path, token=token).status_code == (401 if not is_there else 307 if path == "/" else 200)
        assert ask(guarded, "POST", path, ASKED, token).status_code == (405 if is_there else 401)


@pytest.mark.rule("C1")
@pytest.mark.parametrize("token", [API, OTHER, ADMIN])
def test_each_token_is_good(guarded: Command, token: str) -> None:
    assert ask(guarded, "GET", "/v1/pods", token=token).status_code == 200
    assert ask(guarded, "GET", "/metrics", token=token).status_code == 200
    assert guarded.http.get(f"{guarded.url}/v1/pods", headers={"authorization": f"bEARER   {token}"}).status_code == 200


@pytest.mark.rule("C1")
def test_two_tokens_at_once_are_none(guarded: Command) -> None:
    headers = [("Authorization", f"Bearer {API}"), ("Authorization", f"Bearer {API}")]
    assert guarded.http.get(f"{guarded.url}/v1/pods", headers=headers).status_code == 401


@pytest.mark.rule("C3")
def test_changing_pods_takes_an_admin_token(guarded: Command) -> None:
    for method, body in (("PUT", SPEC), ("DELETE", None)):
        refused = ask(guarded, method, "/v1/pods/x", body, API)
        assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
        assert "--admin-token-file" in refused.json()["detail"]
    assert ask(guarded, "PUT", "/v1/pods/x", SPEC, ADMIN).status_code == 201
    assert ask(guarded, "DELETE", "/v1/pods/x", None, ADMIN).status_code == 204


@pytest.mark.rule("C1")
def test_who_was_refused_is_counted(guarded: Command) -> None:
    def denied() -> list[float]:
        text = ask(guarded, "GET", "/metrics", token=API).text
        return [
            float(line.split()[-1])
            for reason in ("no_token", "wrong_token", "not_admin")
            for line in text.splitlines()
            if line.startswith(f'kv_indexer_denied_total{{reason="{reason}"}}')
        ]

    before = denied()
    ask(guarded, "GET", "/v1/pods")
    ask(guarded, "GET", "/v1/pods", token=WRONG)
    ask(guarded, "DELETE", "/v1/pods/x", token=OTHER)
    assert [now - then for now, then in zip(denied(), before, strict=True)] == [1, 1, 1]


@pytest.mark.rule("C1")
def test_the_document_says_where_tokens_are_needed(guarded: Command) -> None:
    document = ask(guarded, "GET", "/openapi.json", token=API).json()
    scheme = {"type": "http", "scheme": "bearer", "description": "Or in X-KV-Indexer-Token, alone."}
    assert document["components"]["securitySchemes"] == {"token": scheme}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needs = path not in ("/healthz", "/readyz")
            assert ("security" in operation, "401" in operation["responses"]) == (needs, needs), (method, path)
            changes_pods = method in ("put", "delete") and path.startswith("/v1/pods/")
            assert ("403" in operation["responses"]) == changes_pods, (method, path)


@pytest.mark.rule("C2")
def test_the_body_of_a_request_without_a_token_is_not_read(guarded: Command) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    head = f"POST /v1/score HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n".encode())
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 401 "), "neither was the body asked for nor waited for"
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in answer.lower(), "an endless body is not waited for"
        while answer:  # to its end
            answer = client.recv(4096)


@pytest.mark.rule("C2")
def test_a_client_that_sends_a_large_body_without_a_token_sees_why_it_is_refused(guarded: Command) -> None:
    for _ in range(3):
        response = guarded.http.post(f"{guarded.url}/v1/score", content=bytes(4_000_000), headers={"Content-Type": "application/json"})
        assert response.status_code == 401
    assert ask(guarded, "GET", "/v1/pods", token=API).status_code == 200


@pytest.mark.rule("C2")
def test_a_body_that_nobody_reads_has_to_come_in_time(engine: Engine, tmp_path: Path) -> None:
    with serve(None, engine.spec(), api_token_file=write(tmp_path / "api", API), head_timeout_s="0.5") as service:
        host, port = ready(service).url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            client.sendall(f"POST /v1/score HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\n\r\nx".encode())
            assert client.recv(4096).startswith(b"HTTP/1.1 401 ")
            assert is_let_go(client), "whoever drips the rest of it holds no connection"


def is_let_go(client: socket.socket) -> bool:
    """Whether the connection ends, with the client sending a byte now and then."""
    until_s = time.monotonic() + 30
    try:
        while time.monotonic() < until_s:
            client.sendall(b"x")
            time.sleep(0.05)
    except OSError:
        return True
    return False


@pytest.mark.rule("C3")
def test_without_admin_tokens_an_api_token_changes_pods(engine: Engine, tmp_path: Path) -> None:
    with serve(None, engine.spec(), api_token_file=write(tmp_path / "api", API)) as service:
        ready(service)
        assert ask(service, "PUT", "/v1/pods/x", SPEC).status_code == 401
        assert ask(service, "PUT", "/v1/pods/x", SPEC, API).status_code == 201
        assert ask(service, "DELETE", "/v1/pods/x", token=API).status_code == 204


@pytest.mark.rule("C3")
def test_with_admin_tokens_only_everybody_may_ask_and_they_alone_change(engine: Engine, tmp_path: Path) -> None:
    with serve(None, engine.spec(), admin_token_file=write(tmp_path / "admin", ADMIN)) as service:
        ready(service)
        assert ask(service, "GET", "/v1/pods").status_code == 200
        for token in (None, WRONG):
            refused = ask(service, "PUT", "/v1/pods/x", SPEC, token)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert ask(service, "PUT", "/v1/pods/x", SPEC, ADMIN).status_code == 201
        document = ask(service, "GET", "/openapi.json").json()["paths"]
        assert [("security" in operation) for operation in document["/v1/pods/{pod}"].values()] == [True, True]
        assert "security" not in document["/v1/score"]["post"]


@pytest.mark.rule("C4")
@pytest.mark.parametrize("is_signalled", [False, True], ids=["noticed", "SIGHUP"])
def test_tokens_are_replaced_without_a_restart(engine: Engine, tmp_path: Path, is_signalled: bool) -> None:
    path = tmp_path / "api"
    with serve(None, engine.spec(), api_token_file=write(path, "old")) as service:
        ready(service)

        def good(*tokens: str) -> list[bool]:
            return [ask(service, "GET", "/v1/models", token=token).status_code == 200 for token in tokens]

        assert good("old", "new") == [True, False]
        for tokens, expected in ((("old", "new"), [True, True]), (("new",), [False, True])):
            write(path, *tokens)
            if is_signalled:
                service.process.send_signal(signal.SIGHUP)
            wait_until(lambda expected=expected: good("old", "new") == expected)
        assert service.is_running


@pytest.mark.rule("C4")
def test_a_file_that_went_bad_keeps_the_tokens_and_is_told_of_once(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "api"
    with serve(None, engine.spec(), api_token_file=write(path, API)) as service:
        ready(service)

        def told() -> list[str]:
            return [line for line in service.lines if "tokens not read again" in line]

        write(path)
        wait_until(told)
        for _ in range(3):  # again and again the same mistake
            write(path, "# nothing")
            service.process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
        assert ask(service, "GET", "/v1/models", token=API).status_code == 200
        path.unlink()
        wait_until(lambda: len(told()) == 2)
        assert "holds 0 tokens" in told()[0]
        assert "No such file" in told()[1]
        assert ask(service, "GET", "/v1/models", token=API).status_code == 200
        write(path, OTHER)
        wait_until(lambda: ask(service, "GET", "/v1/models", token=OTHER).status_code == 200)
        assert ask(service, "GET", "/v1/models", token=API).status_code == 401
        assert len(told()) == 2


@pytest.mark.rule("C5")
@pytest.mark.parametrize("flag", ["api_token_file", "admin_token_file"])
@pytest.mark.parametrize(("content", "said"), [(None, "cannot be read"), ("", "holds 0 tokens"), ("two words", "line 1 is no token")])
def test_a_file_without_tokens_stops_the_start(tmp_path: Path, flag: str, content: str | None, said: str) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    with serve(None, **{flag: str(path)}) as service:
        assert service.process.wait(30) == 2
    (line,) = service.lines
    assert [word for word in (f"--{flag.replace('_', '-')}", str(path), said) if word not in line] == []
    assert "two words" not in line
