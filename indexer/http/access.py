"""Authorization by bearer tokens: one kind for everything but health checks, and one for changing pods.

--api-token-file    --admin-token-file      scores, pods, metrics …     changing pods
-                   -                       no token                    no token
given               -                       either kind of token        an api token
-                   given                   no token                    an admin token
given               given                   either kind of token        an admin token

A token comes in `Authorization`, or in a header of our own: a gateway that passes its client's `Authorization` on has its own token there.
"""

import logging
from collections.abc import Set
from typing import Any

from fastapi import Request

from indexer.config.auth_tokens import TokenFile
from indexer.config.reload import WatchedFiles
from indexer.config.settings import Settings
from indexer.errors import SettingError
from indexer.http.body_room import BodyRoom
from indexer.http.problems import Problem, response_of
from indexer.metrics import HttpMetrics

log = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that need no token: probes have none."""
CHALLENGE = {"WWW-Authenticate": "Bearer"}
OWN_HEADER = "X-KV-Indexer-Token"
"""Has a token alone. Where it is given, `Authorization` is somebody else's."""
WITHOUT = f"Authorization should be Bearer and a token, or {OWN_HEADER} a token"
UNKNOWN = f"the token in Authorization, or in {OWN_HEADER}, is not a good one"
NOT_ADMIN = "changing pods takes a token of --admin-token-file"

Headers = list[tuple[bytes, bytes]]
_OWN_HEADER = OWN_HEADER.lower().encode()


class Access:
    """Raises SettingError for a file of tokens that cannot be used."""

    def __init__(self, settings: Settings, metrics: HttpMetrics) -> None:
        self.metrics = metrics
        self.room = BodyRoom(settings.limits.http.bodies_bytes_max)
        """For the bodies of all requests of the process."""
        given = {"--api-token-file": settings.api_token_file, "--admin-token-file": settings.admin_token_file}
        paths = {source: path for source, path in given.items() if path is not None}
        self.files = WatchedFiles(*paths.values())
        self._files = {source: TokenFile(path, source) for source, path in paths.items()}
        self._api = self._files.get("--api-token-file")
        self._admin = self._files.get("--admin-token-file")
        self._logged: dict[str, str] = {}
        """Flag → the error that was logged last, as long as its file cannot be used."""

    @property
    def needs_token(self) -> bool:
        """Whether every request but health checks needs one."""
        return self._api is not None

    @property
    def changes_need_token(self) -> bool:
        """Whether changing pods needs one."""
        return bool(self._files)

    @property
    def has_admin_tokens(self) -> bool:
        """Whether changing pods needs an admin token."""
        return self._admin is not None

    def admits(self, headers: Headers) -> bool:
        """Whether a request with these headers is let in, where every one needs a token."""
        assert self._api is not None, "called only if every request needs a token"
        token = _token(headers)
        return token is not None and (self._api.admits(token) or (self._admin is not None and self._admin.admits(token)))

    def refusal(self, headers: Headers) -> str | None:
        """Why a request with these headers is refused; None if it is not."""
        if self.admits(headers):
            return None
        return self._deny("no_token", WITHOUT) if _token(headers) is None else self._deny("wrong_token", UNKNOWN)

    def check_change(self, request: Request) -> None:
        """Check that a request may change pods. Raises Problem."""
        if self._admin is None:
            return
        token = _token(request.scope["headers"])
        if token is not None and self._admin.admits(token):
            return
        if self._api is not None:  # it has an api token, or the gate would have refused it
            raise Problem(403, self._deny("not_admin", NOT_ADMIN))
        why = self._deny("no_token", WITHOUT) if token is None else self._deny("wrong_token", UNKNOWN)
        raise Problem(401, why, headers=CHALLENGE)

    def _deny(self, reason: str, why: str) -> str:
        self.metrics.denied[reason].inc()
        return why

    async def reload(self) -> None:
        """Read the files again. One that cannot be used is logged once, and its tokens stay as they were."""
        for source, file in self._files.items():
            try:
                file.read()
            except SettingError as error:
                if self._logged.get(source) != str(error):
                    log.error("tokens not read again", extra={"error": str(error)})
                self._logged[source] = str(error)
            else:
                if self._logged.pop(source, None) is not None:
                    log.info("tokens read again", extra={"file": file.path})


class Gate:
    """ASGI middleware that refuses requests without a valid token. `open_paths`: those that need none."""

    def __init__(self, app: Any, access: Access, open_paths: Set[str], body_bytes_max: int) -> None:
        self._app = app
        self._refusal = access.refusal
        self._open_paths = open_paths
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] in self._open_paths or (why := self._refusal(scope["headers"])) is None:
            await self._app(scope, receive, send)
            return
        headers = CHALLENGE if self._is_short(scope["headers"]) else {**CHALLENGE, "Connection": "close"}
        await response_of(401, why, headers)(scope, receive, send)

    def _is_short(self, headers: Headers) -> bool:
        """Whether the unread body is small enough to be discarded as it arrives: the client sees the response, and the connection stays open."""
        sizes = [value for name, value in headers if name == b"content-length"]
        if any(name == b"transfer-encoding" for name, _ in headers):
            return False
        return all(size.isdigit() and int(size) <= self._body_bytes_max for size in sizes)


def _token(headers: Headers) -> bytes | None:
    """The token of our own header, or else the bearer token, if there is exactly one."""
    if own := [value.strip() for name, value in headers if name == _OWN_HEADER]:
        return own[0] or None if len(own) == 1 else None
    given = [value for name, value in headers if name == b"authorization"]
    if len(given) != 1:
        return None
    scheme, _, token = given[0].strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and token else None
