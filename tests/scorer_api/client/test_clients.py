"""Both clients against a real service, and against a server that fails in every way."""

import asyncio
import socket
import threading
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest

from scorer_api.client import (
    AsyncClient,
    Change,
    Client,
    ClientError,
    Connected,
    Disconnected,
    NoAnswerError,
    PodAnswer,
    PodAppeared,
    PodGone,
    ProblemError,
    Restarted,
    Retries,
    ServiceBack,
    ServiceLost,
    StrangeAnswerError,
    StreamAppeared,
    TrustChanged,
)
from tests.engine import Engine, stored
from tests.engine_server import EngineServer, tokenize_bytes
from tests.ports import free_port
from tests.running import Client as Service
from tests.running import Command, Running
from tests.scorer_api.client.faulty import Faulty, answer

RIGHT = "right-one"
QUICK = Retries(count=2, first_s=0.01, pause_max_s=0.05)
PROBLEM = b'{"type": "about:blank", "title": "Nope", "status": %d, "detail": "not now"}'
SCORED = msgspec.msgpack.encode({"model": "m", "tokens": 1, "best": None, "pods": [], "view": {"source": "embedded", "age_s": 0.0}})


class Waiting:
    """The asynchronous client, called as the other one is."""

    def __init__(self, *words: Any, **more: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._make(*words, **more))

    async def _make(self, *words: Any, **more: Any) -> AsyncClient:
        return AsyncClient(*words, **more)

    def __enter__(self) -> Self:
        self._runner.run(self._client.__aenter__())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        self._runner.close()

    def close(self) -> None:
        self._runner.run(self._client.aclose())

    def score(self, *words: Any, **more: Any) -> Any:
        return self._runner.run(self._client.score(*words, **more))

    def explain(self, *words: Any, **more: Any) -> Any:
        return self._runner.run(self._client.explain(*words, **more))

    def route(self, *words: Any, **more: Any) -> Any:
        return self._runner.run(self._client.route(*words, **more))

    def route_done(self, name: str) -> Any:
        return self._runner.run(self._client.route_done(name))

    def pods(self) -> Any:
        return self._runner.run(self._client.pods())

    def watch(self, *words: Any, **more: Any) -> Iterator[Change]:
        changes = self._client.watch(*words, **more)
        while (change := self._runner.run(self._next(changes))) is not None:
            yield change

    @staticmethod
    async def _next(changes: AsyncIterator[Change]) -> Change | None:
        return await anext(changes, None)


BOTH = pytest.mark.parametrize("kind", [Client, Waiting])
Kind = type[Client] | type[Waiting]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """a holds both blocks of 1 to 9."""
    with Engine() as engine, Running(engine.spec("a"), f"pod=b,model=m,events=tcp://127.0.0.1:{free_port()}") as service:
        engine.publish(stored([1, 2], range(1, 9)))
        service.wait_for(pod="a", sequence=0, trust="live")
        yield service


@BOTH
@pytest.mark.parametrize("tokens", [list(range(1, 10)), range(1, 10), array("I", range(1, 10)), array("q", range(1, 10))])
def test_a_score(service: Service, kind: Kind, tokens: Any) -> None:
    with kind(service.url + "/") as client:
        scored = client.score("m", tokens, pods=["a", "ghost"], limit=5)
        assert (scored.model, scored.tokens, scored.best, scored.unknown_pods, scored.view.source) == ("m", 9, "a", ["ghost"], "embedded")
        assert scored.pods == [PodAnswer("a", 1.0, 8, 2, 2, 4, {"gpu": 2}, 0, {"0": 2}, "live")]
        assert client.score("m", tokens, cache_salt="other").best is None


@BOTH
def test_a_pick(service: Service, kind: Kind) -> None:
    with kind(service.url) as client:
        picked = client.route("m", range(1, 10), policy="prefix", exclude=["ghost"], output_tokens_expected=3, session_id="s")
        assert (picked.model, picked.tokens, picked.pod, picked.rank, picked.policy) == ("m", 9, "a", 0, "prefix")
        assert (picked.reason["a"].matched_tokens, picked.reason["a"].why) == (8, None)
        assert [client.route_done(picked.id).known for _ in range(2)] == [True, False]


@BOTH
def test_a_prompt_and_a_chat_are_turned_into_tokens_by_the_engine(kind: Kind) -> None:
    with (
        EngineServer(routes={"/tokenize": tokenize_bytes}) as api,
        Engine() as engine,
        Running(engine.spec("a", http=api.url)) as asked,
        kind(asked.url) as client,
    ):
        engine.publish(stored([1], b"abcd"))
        engine.publish(stored([2], [1000, *b"abc"]))
        asked.wait_for(pod="a", sequence=1, trust="live")
        assert client.score("m", prompt="abcde").pods[0].matched_tokens == 4
        chat = client.score("m", messages=[{"role": "user", "content": "abcde"}], tools=[{"type": "function"}], add_generation_prompt=False)
        assert (chat.tokens, chat.pods[0].matched_tokens) == (6, 4)
        assert client.explain("m", prompt="abcde").source == "prompt"
        assert client.explain("m", messages=[{"role": "user", "content": "x"}]).source == "messages"
        sent = next(request for request in api.tokenize_requests if "tools" in request)
        assert (sent["tools"], sent["add_generation_prompt"]) == ([{"type": "function"}], False)


@BOTH
def test_an_explanation(service: Service, kind: Kind) -> None:
    with kind(service.url) as client:
        said = client.explain("m", [1, 2, 3, 4, 7, 7, 7, 7, 7], pods=["a", "ghost"])
    assert (said.model, said.tokens, said.source, said.about.pods, said.about.block_sizes) == ("m", 9, "token_ids", 2, [4])
    assert said.unknown_pods == ["ghost"]
    (a,) = said.pods
    assert (a.pod, a.score, a.matched_tokens, a.usable_blocks, a.trust) == ("a", 0.5, 4, 2, "live")
    (rank,) = a.ranks
    assert (rank.runs, rank.end.reason, rank.end.block) == ([("gpu", 1)], "never_stored", 1)
    assert a.why
    assert rank.end.detail


@BOTH
def test_pods(service: Service, kind: Kind) -> None:
    with kind(service.url) as client:
        a, b = client.pods()
    assert (a.pod, a.model, b.pod) == ("a", "m", "b")
    assert (a.streams[0].trust, a.streams[0].blocks, a.streams[0].connected) == ("live", {"gpu": 2}, True)
    assert (b.streams[0].trust, b.streams[0].sequence, b.streams[0].connected) == ("stale", None, False)


@BOTH
def test_what_the_service_refuses_is_a_problem_with_its_words(service: Service, kind: Kind) -> None:
    with kind(service.url) as client:
        with pytest.raises(ProblemError, match="'ghost' is not known") as raised:
            client.score("ghost", [1])
        assert (raised.value.status, raised.value.title, raised.value.retry_after_s) == (404, "Not Found", None)
        with pytest.raises(ProblemError) as raised:
            client.score("m", [1], limit=0)
        assert raised.value.status == 422
        with pytest.raises(ValueError, match="token_ids"):
            client.score("m", [-1])


@BOTH
def test_a_token_is_sent(tmp_path: Path, kind: Kind) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(RIGHT)
    with Running(api_token_file=str(tokens)) as guarded:
        with kind(guarded.url, token=RIGHT) as client:
            assert client.pods() == []
        with kind(guarded.url, token=RIGHT[1:]) as client, pytest.raises(ProblemError) as raised:
            client.pods()
    assert raised.value.status == 401


# Retries


@BOTH
@pytest.mark.parametrize("failure", [None, answer(503, PROBLEM % 503, "Retry-After: 0"), answer(429, PROBLEM % 429, "Retry-After: 0")])
def test_a_failure_that_passes_is_not_seen(kind: Kind, failure: bytes | None) -> None:
    with Faulty(failure, failure, answer(200, SCORED)) as server, kind(server.url, retries=QUICK) as client:
        assert client.score("m", [1]).tokens == 1
    assert server.asked == ["POST /v1/score HTTP/1.1"] * 3


@BOTH
def test_a_failure_that_stays_is_told_after_so_many_tries(kind: Kind) -> None:
    busy = answer(503, PROBLEM % 503, "Retry-After: 0")
    with Faulty(busy) as server, kind(server.url, retries=QUICK) as client, pytest.raises(ProblemError) as raised:
        client.score("m", [1])
    assert (raised.value.status, raised.value.title, raised.value.detail, raised.value.retry_after_s) == (503, "Nope", "not now", 0)
    assert len(server.asked) == 3
    with Faulty(None) as server, kind(server.url, retries=QUICK) as client, pytest.raises(NoAnswerError, match=server.url):
        client.pods()
    assert len(server.asked) == 3


@BOTH
@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 502, 503])
def test_an_answer_is_not_asked_for_again(kind: Kind, status: int) -> None:
    with Faulty(answer(status, PROBLEM % status)) as server, kind(server.url, retries=QUICK) as client, pytest.raises(ProblemError) as raised:
        client.score("m", [1])
    assert (raised.value.status, len(server.asked)) == (status, 1)


@BOTH
@pytest.mark.parametrize(
    "strange", [answer(200, b"<html>"), answer(502, b"Bad Gateway"), answer(302, b"", "Location: http://127.0.0.1:1/"), answer(204)]
)
def test_an_answer_of_something_else_is_strange(kind: Kind, strange: bytes) -> None:
    with Faulty(strange) as server, kind(server.url, retries=QUICK) as client:
        for ask in (client.pods, lambda: client.score("m", [1])):
            with pytest.raises(StrangeAnswerError, match=server.url):
                ask()
    assert len(server.asked) == 2


@BOTH
def test_nobody_there(kind: Kind) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with kind(url.replace("//", "//me:secret@"), retries=QUICK) as client, pytest.raises(NoAnswerError, match=url) as raised:
        client.score("m", [1])
    assert "secret" not in str(raised.value)


@BOTH
def test_an_answer_that_takes_too_long_is_given_up_at_once(kind: Kind) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        with kind(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2, retries=QUICK) as client, pytest.raises(NoAnswerError):
            client.score("m", [1])
        silent.settimeout(5)
        silent.accept()[0].close()
        silent.settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent.accept()


# Watch


def first(changes: Iterator[Change], wanted: type[Change] | tuple[type[Change], ...]) -> Any:
    """The next change of this kind."""
    deadline_s = time.monotonic() + 60
    for change in changes:
        if isinstance(change, wanted):
            return change
        assert time.monotonic() < deadline_s, f"no {wanted} came"
    raise AssertionError("it ended")


@BOTH
def test_watch_tells_of_pods_that_come_change_and_go(kind: Kind) -> None:
    with Engine() as engine, Running(engine.spec("a"), pod_expiry_s="0.5") as service, kind(service.url) as client:
        service.wait_for(pod="a", trust="live", connected=True)
        changes = client.watch("m", interval_s=0.02)
        assert next(changes) == PodAppeared("a", "m")
        assert next(changes) == StreamAppeared("a", "m", 0, "live", True)
        engine.publish(stored([1], range(1, 5)))
        service.wait_for(pod="a", sequence=0)
        engine.kill()
        gone = first(changes, Disconnected)
        assert (gone.pod, gone.rank) == ("a", 0)
        assert gone.why is not None
        assert first(changes, TrustChanged) == TrustChanged("a", "m", 0, "live", "stale")
        assert first(changes, TrustChanged) == TrustChanged("a", "m", 0, "stale", "expired")
        engine.start()
        assert {type(first(changes, (Connected, Restarted, TrustChanged))) for _ in range(2)} & {Connected}
        service.http.delete(f"{service.url}/v1/pods/a").raise_for_status()
        assert first(changes, PodGone) == PodGone("a", "m")


@BOTH
def test_watch_goes_on_through_an_outage_and_says_so(kind: Kind) -> None:
    port = str(free_port())
    with Engine() as engine, kind(f"http://127.0.0.1:{port}") as client:
        with Command("serve", "--port", port, "--engine", engine.spec("a")) as service:
            service.wait_url()
            service.wait_for(pod="a", trust="live")
            changes = client.watch(interval_s=0.02)
            assert next(changes) == PodAppeared("a", "m")
            service.kill()
        assert service.url in first(changes, ServiceLost).why
        with Command("serve", "--port", port) as service:
            service.wait_url()
            back = first(changes, (ServiceBack, ServiceLost))
            assert isinstance(back, ServiceBack)
            assert 0 < back.away_s < 60
            assert next(changes) == PodGone("a", "m")
            client.close()
            assert list(changes) == []


@BOTH
def test_watch_does_not_look_again_where_that_is_no_use(kind: Kind, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(RIGHT)
    with Running(api_token_file=str(tokens)) as guarded, kind(guarded.url) as client, pytest.raises(ProblemError):
        next(client.watch())


def test_closing_the_client_ends_a_watch_that_waits() -> None:
    with Running() as service:
        client = Client(service.url)
        ended = threading.Event()

        def look() -> None:
            for _ in client.watch(interval_s=3600):
                raise AssertionError("there is nothing to tell of")
            ended.set()

        thread = threading.Thread(target=look)
        thread.start()
        time.sleep(0.2)
        client.close()
        thread.join(20)
    assert ended.is_set()


async def test_a_watch_can_be_cancelled() -> None:
    with Running() as service:
        async with AsyncClient(service.url) as client:

            async def look() -> None:
                async for _ in client.watch(interval_s=3600):
                    raise AssertionError("there is nothing to tell of")

            looking = asyncio.create_task(look())
            await asyncio.sleep(0.2)
            looking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await looking
            assert await client.pods() == []


def test_one_client_serves_several_threads(service: Service) -> None:
    seen: list[int] = []
    with Client(service.url) as client:
        threads = [threading.Thread(target=lambda: seen.append(client.score("m", range(1, 10)).pods[0].matched_tokens)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert seen == [8] * 8


def test_every_error_is_a_client_error() -> None:
    assert all(issubclass(error, ClientError) for error in (NoAnswerError, ProblemError, StrangeAnswerError))
