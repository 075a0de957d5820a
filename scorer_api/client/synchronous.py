"""The synchronous client."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from os import PathLike
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from scorer_api.client.calls import (
    METRICS,
    PODS,
    Asked,
    Call,
    RouteAsked,
    Service,
    Tokens,
    done_call,
    explain_call,
    hot_call,
    route_call,
    score_call,
    trusted,
)
from scorer_api.client.changes import Change, Watch
from scorer_api.client.errors import ClientError
from scorer_api.client.responses import DoneAnswer, ExplainAnswer, HotAnswer, PodStatus, RouteAnswer, ScoreAnswer
from scorer_api.client.retries import DEFAULT, NONE, Retries

A = TypeVar("A")


class Client:
    """`with Client("http://indexer:8080") as client: client.score("my/model", token_ids)`. One may be used by several threads.

    `token`: the service's bearer token, or a function that returns it, called before each request. `ca_file`: PEM file of the authority that signed
    the service's certificate; `verify`: an ssl context instead, or False for no verification. `timeout_s`: for the connection and for each read.
    Every method raises ClientError if there is no usable answer, and ValueError for arguments that cannot be sent.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        token: str | Callable[[], str] | None = None,
        ca_file: str | PathLike[str] | None = None,
        verify: bool | ssl.SSLContext = True,
        timeout_s: float = 10.0,
        retries: Retries = DEFAULT,
    ) -> None:
        self._service = Service.at(url, token)
        self._retries = retries
        self._http = httpx.Client(timeout=timeout_s, verify=trusted(verify, ca_file))
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end every `watch`. Idempotent."""
        self._closed.set()
        self._http.close()

    def score(self, model: str, token_ids: Tokens | None = None, **asked: Unpack[Asked]) -> ScoreAnswer:
        """Score every pod by the longest prefix of the prompt that it holds. Takes exactly one of token_ids, prompt, messages and block_hashes."""
        return self._ask(score_call(model, token_ids, asked), self._retries)

    def explain(self, model: str, token_ids: Tokens | None = None, **asked: Unpack[Asked]) -> ExplainAnswer:
        """Score every pod, with the reason why its match ends where it does."""
        return self._ask(explain_call(model, token_ids, asked), self._retries)

    def route(self, model: str, token_ids: Tokens | None = None, **asked: Unpack[RouteAsked]) -> RouteAnswer:
        """Pick the pod that is to serve the prompt. If the answer is lost, the pick counts until the service forgets it."""
        return self._ask(route_call(model, token_ids, asked), self._retries)

    def route_done(self, name: str) -> DoneAnswer:
        """Report that a routed request is over, or was never sent, by the `id` of its answer. Only the scorer that picked the pod knows the id."""
        return self._ask(done_call(name), self._retries)

    def pods(self) -> list[PodStatus]:
        """Return every registered pod with the state of its streams."""
        return self._ask(PODS, self._retries).pods

    def hot(self, model: str | None = None, limit: int | None = None) -> HotAnswer:
        """Return the prefixes that are asked for most, and which pods hold them. ProblemError with status 501 where the service does not count."""
        return self._ask(hot_call(model, limit), self._retries)

    def metrics(self) -> str:
        """Return the service's metrics in the text format of Prometheus."""
        return self._ask(METRICS, self._retries)

    def watch(self, model: str | None = None, interval_s: float = 1.0) -> Iterator[Change]:
        """Yield the changes of the pods (of this model) and their streams, starting with all that exist. Polls every `interval_s` seconds.

        An outage of the service is a change too, and does not end the iteration. Ends when the client is closed, by any thread.
        Raises ProblemError or StrangeAnswerError where polling again would be of no use: a wrong token, a wrong address.
        """
        watch = Watch(model)
        while not self._closed.is_set():
            try:
                found = list(watch.seen(self._ask(PODS, NONE).pods, time.monotonic()))
            except ClientError as error:
                found = list(watch.failed(error, time.monotonic()))
            except RuntimeError:  # httpx raises it for a closed client
                if not self._closed.is_set():
                    raise
                return
            if self._closed.is_set():
                return
            yield from found
            self._closed.wait(interval_s)

    def _ask(self, call: Call[A], policy: Retries) -> A:
        tries = 0
        while True:
            outcome = self._send(call)
            tries += 1
            pause_s = policy.pause_s(tries, outcome)
            if pause_s is None or self._closed.wait(pause_s):
                break
        if isinstance(outcome, Exception):
            raise self._service.no_answer(outcome) from outcome
        return self._service.read(call, outcome)

    def _send(self, call: Call[A]) -> httpx.Response | Exception:
        try:
            return self._http.request(call.method, self._service.url + call.path, content=call.content, headers=self._service.headers(call))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return error
