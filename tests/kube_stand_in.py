"""A stand-in for Kubernetes' API server: lists and watches over TLS, and the writes that tests make. It shares no code with the product.

What it does is what a real one was seen to do: pages with `continue`, label selectors that let an object come and go, a version too old as an event
ERROR of code 410, a bookmark at the end of a watch, a pod with a node that stays until its grace is over.
"""

import json
import re
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from tests.tls import CERTIFICATE, DATA

Object = dict[str, Any]
_PATH = re.compile(r"(/apis?/.+)/namespaces/([^/]+)/([^/]+)(?:/([^/]+))?(?:/status)?")


class StandIn:
    """`with StandIn() as api:` serves at `api.url`. `requests`: (verb, resource) of each one, which `note_request` gets before it is answered.

    Faults are attributes: `refused`, (verb, resource) → status; `is_frozen`, it accepts and says nothing; `cuts_events`, a watch ends within its next
    event; `page_max`, objects of a page.
    """

    def __init__(self) -> None:
        self.admin = "admin"
        self.tokens = {"t0", self.admin}
        self.refused: dict[tuple[str, str], int] = {}
        self.is_frozen = self.cuts_events = False
        self.page_max = 500
        self.requests: list[tuple[str, str]] = []
        self.note_request: Callable[[tuple[str, str]], None] = lambda _: None
        self.objects: dict[tuple[str, str], dict[str, Object]] = {}
        self.log: list[tuple[int, tuple[str, str], Object | None, Object | None]] = []
        self.version = self.oldest = 1_000
        self.changed = threading.Condition()
        self.port = 0

    def __enter__(self) -> Self:
        self.server = _Server(("127.0.0.1", self.port), _Handler)
        self.server.api = self
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE, DATA / "tls-key.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_port
        self.url = f"https://127.0.0.1:{self.port}"
        self.is_up = True
        self.thread = threading.Thread(target=lambda: self.server.serve_forever(0.02), name="kube", daemon=True)
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Every connection is closed at once, as by a kill."""
        with self.changed:
            self.is_up = False
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()
        for connection in list(self.server.connections):
            connection.close()

    def write(self, place: tuple[str, str], name: str, new: Object | None) -> Object | None:
        """Create, replace or delete an object. Returns what there was before, or None."""
        with self.changed:
            of_kind = self.objects.setdefault(place, {})
            before = of_kind.pop(name, None)
            self.version += 1
            if new is not None:
                of_kind[name] = new = {**new, "metadata": {**new["metadata"], "resourceVersion": str(self.version)}}
            self.log.append((self.version, place, before, new))
            self.changed.notify_all()
            return before

    def compact(self) -> None:
        """Forget what changed: a watch from an older version than this moment's is too old."""
        with self.changed:
            self.log.clear()
            self.version += 1
            self.oldest = self.version
            self.changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    api: StandIn

    def __init__(self, *args: Any) -> None:
        self.connections: set[Any] = set()
        super().__init__(*args)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request_thread(request, client_address)
        self.connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, or that we cut off, is no error."""
        if not isinstance(sys.exception(), (OSError, ValueError)):
            super().handle_error(request, client_address)


def matches(each: Object | None, query: Mapping[str, str]) -> bool:
    """Label selectors of `key=value` and `key`, and fieldSelector=metadata.name=…."""
    if each is None:
        return False
    labels = each["metadata"].get("labels") or {}
    wanted = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in wanted) and name in ("", each["metadata"]["name"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        while self.server.api.is_frozen and self.server.api.is_up:
            time.sleep(0.02)
        super().handle_one_request()

    def do_GET(self) -> None:
        api, (group, namespace, kind, _), query = self.server.api, self._place(), self._query()
        verb = "watch" if "watch" in query else "list"
        api.requests.append((verb, kind))
        api.note_request((verb, kind))
        if (status := self._refused(verb, kind)) is not None:
            self._status(status, f'User "engines" cannot {verb} resource "{kind}" in API group "" in the namespace "{namespace}"')
        elif verb == "watch":
            self._watch((group + namespace, kind), query)
        else:
            self._list((group + namespace, kind), query)

    def _refused(self, verb: str, kind: str) -> int | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.server.api.tokens:
            return 401
        return None if token == self.server.api.admin else self.server.api.refused.get((verb, kind))

    def _list(self, place: tuple[str, str], query: Mapping[str, str]) -> None:
        api = self.server.api
        with api.changed:
            version, _, start = query.get("continue", f"{api.version}.0").partition(".")
            found = [each for each in api.objects.get(place, {}).values() if matches(each, query)]
        if int(version) < api.oldest:
            self._status(410, "The provided continue parameter is too old to display a consistent list result.")
            return
        end = int(start) + min(int(query.get("limit", "500")), api.page_max)
        metadata = {"resourceVersion": version, **({"continue": f"{version}.{end}"} if end < len(found) else {})}
        self._answer(200, {"kind": "List", "metadata": metadata, "items": found[int(start) : end]})

    def _watch(self, place: tuple[str, str], query: Mapping[str, str]) -> None:
        api = self.server.api
        ends_s = time.monotonic() + float(query.get("timeoutSeconds", "3600"))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for event in self._events(place, query, int(query["resourceVersion"]), ends_s):
                line = json.dumps(event).encode() + b"\n"
                if api.cuts_events:
                    api.cuts_events = False
                    line = line[: len(line) // 2]
                    ends_s = 0.0
                self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))
                if not ends_s:
                    break
            if not api.is_up:
                raise ConnectionError("killed")
            self.wfile.write(b"0\r\n\r\n")
        except (OSError, ValueError):
            self.close_connection = True

    def _events(self, place: tuple[str, str], query: Mapping[str, str], version: int, ends_s: float) -> Iterator[Object]:
        api = self.server.api
        while True:
            with api.changed:
                if version < api.oldest:
                    yield {"type": "ERROR", "object": {"kind": "Status", "reason": "Expired", "code": 410, "message": f"too old: {version}"}}
                    return
                due = [entry for entry in api.log if entry[0] > version]
                if not due or api.is_frozen:
                    if time.monotonic() >= ends_s or not api.is_up:
                        break
                    api.changed.wait(0.05 if api.is_frozen else max(0.0, min(ends_s - time.monotonic(), 1.0)))
                    continue
            for version, of, before, after in due:
                was, now = matches(before, query), matches(after, query)
                if of == place and (was or now):
                    gone = {**(after or before or {}), "metadata": {**(after or before or {})["metadata"], "resourceVersion": str(version)}}
                    yield {"type": "MODIFIED" if was and now else "ADDED" if now else "DELETED", "object": gone}
        if "allowWatchBookmarks" in query and api.is_up:
            yield {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": str(api.version), "creationTimestamp": None}}}

    # Writes

    def do_POST(self) -> None:
        given = self._body()
        name = given["metadata"]["name"]
        stamped = {"uid": str(uuid4()), "creationTimestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")}
        self._write(name, {**given, "metadata": {**given["metadata"], **stamped}}, 201)

    def do_PATCH(self) -> None:
        """A merge patch; also of what is below /status."""
        group, namespace, kind, name = self._place()
        before = self.server.api.objects.get((group + namespace, kind), {}).get(name)
        if before is None:
            self._body()
            self._status(404, f'{kind} "{name}" not found')
        else:
            self._write(name, _merged(before, self._body()), 200)

    def do_DELETE(self) -> None:
        """A pod that runs on a node stays as terminating, unless its grace is 0."""
        group, namespace, kind, name = self._place()
        grace = self._body().get("gracePeriodSeconds", 30)
        before = self.server.api.objects.get((group + namespace, kind), {}).get(name)
        if before is None:
            self._status(404, f'{kind} "{name}" not found')
        elif kind == "pods" and grace and before["spec"].get("nodeName"):
            self._write(name, _merged(before, {"metadata": {"deletionTimestamp": "2026-01-31T12:00:00Z"}}), 200)
        else:
            self._write(name, None, 200)

    def _write(self, name: str, new: Object | None, status: int) -> None:
        group, namespace, kind, _ = self._place()
        if self._refused("write", kind) is None:
            self.server.api.write((group + namespace, kind), name, new)
            self._answer(status, new or {"kind": "Status", "status": "Success"})
        else:
            self._status(401, "Unauthorized")

    # Requests and answers

    def _place(self) -> tuple[str, str, str, str]:
        found = _PATH.fullmatch(urlsplit(self.path).path)
        assert found is not None, f"no such path here: {self.path}"
        return found[1], found[2], found[3], found[4] or ""

    def _query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}

    def _body(self) -> Object:
        content: Object = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
        return content

    def _status(self, code: int, message: str) -> None:
        self._answer(code, {"kind": "Status", "status": "Failure", "code": code, "message": message})

    def _answer(self, status: int, content: Object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""


def _merged(before: Object, patch: Object) -> Object:
    """RFC 7386."""
    merged = dict(before)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key) or {}, value) if isinstance(value, dict) else value
    return merged
