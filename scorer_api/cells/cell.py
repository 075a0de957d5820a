"""One cell, as the scorer in front knows it: whether it is asked, and asking it."""

import logging
from collections.abc import Mapping
from typing import Literal

import msgspec
from msgspec import Struct
from xxhash import xxh3_64_hexdigest

from indexer.engines.http_client import Answer, FetchError, HttpClient, Target
from indexer.http.negotiation import MSGPACK
from indexer.http.problems import ProblemDetails
from scorer_api.cells.metrics import CellMetrics

log = logging.getLogger(__name__)

State = Literal["answered", "unknown_model", "late", "failed", "down"]
"""What became of a cell's part of a request: it answered; it has no pod of the model; it took too long; it answered nothing that can be used; or it
was not asked, since it was not ready at the last look, or failed since."""
# An answer about a thousand pods has some hundred kilobytes.
ANSWER_BYTES_MAX = 32 * 2**20
ERROR_BYTES_MAX = 65_536
# What lies in the request, or in who asks.
REFUSALS = (400, 401, 403, 413, 415, 422, 501)
# How the problem begins that a scorer has with a model that it does not know.
UNKNOWN_MODEL = "model: "
# After so many late answers in a row a cell is not asked until the next look finds it ready.
LATE_MAX = 3
NAME_DIGITS = 8


_decode_problem = msgspec.json.Decoder(ProblemDetails).decode


class Part(Struct, frozen=True):
    """A cell's part of a request. `body`: its answer in msgpack; with `status`, where it is a problem that lies in the request, in JSON.
    `status` alone where the cell cannot answer.
    """

    state: State
    body: bytes = b""
    status: int = 200

    @property
    def is_refusal(self) -> bool:
        """Whether the cell says that the request is wrong: then all of them do."""
        return self.state == "answered" and self.status != 200


class Cell:
    """`url`: of a scorer. `name`: stands in front of the ids of requests that it routed. `age_s`: how old what it knows is, by its last answer."""

    def __init__(self, url: str, http: HttpClient, metrics: CellMetrics, timeout_s: float) -> None:
        self.url = url
        self.name = xxh3_64_hexdigest(url.encode())[:NAME_DIGITS]
        self.is_up = False
        self.why = "not asked so far"
        self._http = http
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._late = 0

    async def look(self) -> None:
        """See whether it is ready."""
        try:
            answer = await self._fetch("/readyz")
        except FetchError as error:
            self._note_down(error.why)
            return
        if answer.status == 200:
            self._note_up()
        else:
            self._note_down("not ready" if answer.status == 503 else f"/readyz answers {answer.status}")

    async def ask(self, path: str, body: bytes | None, headers: Mapping[str, str]) -> Part:
        """Its part of a request: a POST, or a GET without a body. Never fails."""
        part = await self._ask(path, body, headers) if self.is_up else Part("down")
        self._metrics.answers[self.url, part.state].inc()
        return part

    async def _ask(self, path: str, body: bytes | None, headers: Mapping[str, str]) -> Part:
        try:
            answer = await self._fetch(path, {**headers, "Accept": MSGPACK}, body)
        except FetchError as error:
            if error.outcome == "timeout":
                self._late += 1
                if self._late >= LATE_MAX:
                    self._note_down(f"{error.why}, {LATE_MAX} times in a row")
                return Part("late")
            self._note_down(error.why)
            return Part("failed")
        self._late = 0
        if answer.status == 404 and _is_of_a_model(answer.body):
            return Part("unknown_model")
        if answer.is_cut or answer.status not in (200, *REFUSALS):
            return Part("failed", status=answer.status)
        return Part("answered", answer.body, answer.status)

    async def _fetch(self, path: str, headers: Mapping[str, str] | None = None, content: bytes | None = None) -> Answer:
        return await self._http.fetch(
            Target(self.url + path),
            timeout_s=self._timeout_s,
            bytes_max=ANSWER_BYTES_MAX,
            error_bytes_max=ERROR_BYTES_MAX,
            headers=headers,
            content=content,
        )

    def _note_up(self) -> None:
        """That it is ready does not make its late answers early ones."""
        if not self.is_up:
            self._late = 0
            log.info("cell up", extra={"url": self.url})
        self.is_up = True
        self._metrics.up[self.url].set(1)

    def _note_down(self, why: str) -> None:
        if self.is_up or self.why != why:
            log.warning("cell down", extra={"url": self.url, "error": why})
        self.is_up, self.why = False, why
        self._metrics.up[self.url].set(0)


def _is_of_a_model(body: bytes) -> bool:
    """Whether a 404 says that the model is unknown, and not that the route is: that would be no scorer, or one that is too old."""
    try:
        return _decode_problem(body).detail.startswith(UNKNOWN_MODEL)
    except msgspec.MsgspecError:
        return False
