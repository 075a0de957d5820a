"""One call of a gateway, in every order that gateways have."""

import pytest

from indexer.http.body_room import BodyRoom
from scorer_api.gateway.exchange import PIECE_BYTES, Exchange, Question, RefusedError
from scorer_api.gateway.messages import Mutation
from tests import ext_proc
from tests.ext_proc import BUFFERED, DESTINATION, FULL_DUPLEX, NONE, REQUEST_BODY, REQUEST_HEADERS, RESPONSE_BODY, RESPONSE_HEADERS, Reply, read_reply

PATH = {":path": "/v1/completions", "content-length": "2"}
ENDPOINT = "10.0.0.1:80"
LIMIT = 1_000_000


class Call:
    """A gateway's view of an exchange."""

    def __init__(self, limit: int = LIMIT, room: int = 10 * LIMIT) -> None:
        self.room = BodyRoom(room)
        self.exchange = Exchange(self.room, limit)

    def send(self, *messages: bytes) -> list[Reply]:
        """The replies to these messages, up to the question."""
        return [read_reply(reply) for message in messages for reply in self.exchange.receive(message)]

    def ask(self, *messages: bytes) -> Question:
        """The question that these messages lead to."""
        assert self.send(*messages) == []
        question = self.exchange.take_question()
        assert question is not None
        assert self.exchange.take_question() is None
        return question

    def pick(self, body: bytes | None = None) -> list[Reply]:
        return [read_reply(reply) for reply in self.exchange.picked(Mutation(ENDPOINT), body)]

    def finish(self) -> None:
        self.exchange.close()
        assert self.room.bytes_left == 10 * LIMIT


def begin(request: int = FULL_DUPLEX, response: int = NONE, *, is_end: bool = False) -> bytes:
    return ext_proc.headers(REQUEST_HEADERS, PATH, is_end=is_end, more=ext_proc.modes(request, response))


def body_of(replies: list[Reply]) -> bytes:
    """The body that these pieces make, whose last one ends it."""
    assert [reply.kind for reply in replies] == [3] * len(replies)
    assert [reply.is_end for reply in replies] == [*[False] * (len(replies) - 1), True]
    assert all(len(reply.body) <= PIECE_BYTES for reply in replies)
    return b"".join(reply.body for reply in replies)


@pytest.mark.parametrize("size", [1, PIECE_BYTES, PIECE_BYTES + 1, 500_000])
@pytest.mark.parametrize("cut", [1, 3])
def test_full_duplex_the_pick_goes_before_the_body(size: int, cut: int) -> None:
    call = Call()
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    step = -(-size // cut)
    pieces = [content[start : start + step] for start in range(0, size, step)]
    sent = [ext_proc.body(REQUEST_BODY, piece, is_end=number == len(pieces)) for number, piece in enumerate(pieces, 1)]
    question = call.ask(begin(), *sent)
    assert (question.headers, question.body, question.is_cut, question.subset) == (PATH, content, False, None)
    first, *rest = call.pick()
    assert (first.kind, first.clears_route, first.set) == (1, True, {DESTINATION: ENDPOINT, "content-length": str(size)})
    assert first.told == {"envoy.lb": {DESTINATION: ENDPOINT}}
    assert body_of(rest) == content
    call.finish()


def test_an_end_that_comes_by_itself_is_passed_on() -> None:
    call = Call()
    question = call.ask(begin(), ext_proc.body(REQUEST_BODY, b"{}"), ext_proc.body(REQUEST_BODY, b"", is_end=True))
    assert question.body == b"{}"
    assert body_of(call.pick()[1:]) == b"{}"
    empty = Call()
    assert empty.ask(begin(), ext_proc.body(REQUEST_BODY, b"", is_end=True)).body == b""
    assert body_of(empty.pick()[1:]) == b""


@pytest.mark.parametrize("mode", [FULL_DUPLEX, BUFFERED, NONE])
def test_a_request_without_a_body_is_asked_about_at_once(mode: int) -> None:
    call = Call()
    assert call.ask(begin(mode, is_end=True)).body is None
    (reply,) = call.pick()
    assert (reply.kind, reply.set) == (1, {DESTINATION: ENDPOINT})


def test_so_is_one_whose_body_the_gateway_keeps() -> None:
    call = Call()
    assert call.ask(begin(NONE)).body is None
    assert [reply.kind for reply in call.pick()] == [1]


@pytest.mark.parametrize("is_end", [True, False])
def test_a_buffered_body_is_answered_with_the_pick(is_end: bool) -> None:
    """Trailers may follow it, which is why it need not be the end."""
    call = Call()
    (reply,) = call.send(begin(BUFFERED))
    assert (reply.kind, reply.set, reply.told) == (1, {}, {})
    assert call.ask(ext_proc.body(REQUEST_BODY, b"{}", is_end=is_end)).body == b"{}"
    (reply,) = call.pick()
    assert (reply.kind, reply.set, reply.replaced) == (3, {DESTINATION: ENDPOINT}, None)
    assert [reply.kind for reply in call.send(ext_proc.trailers(6))] == [5]


def test_a_body_that_comes_first_brings_what_headers_would_say_and_gets_the_pick_in_metadata() -> None:
    call = Call()
    given = {"request.path": "/v1/completions", 'request.headers["x-session-id"]': "s", 'request.headers["cookie"]': "secret", "request.size": "7"}
    subset = ext_proc.subset(ext_proc.text_value(ENDPOINT))
    more = ext_proc.modes(BUFFERED) + ext_proc.attributes(given) + subset
    question = call.ask(ext_proc.body(REQUEST_BODY, b"{}", is_end=True, more=more))
    assert question == Question({":path": "/v1/completions", "x-session-id": "s"}, b"{}", False, (ENDPOINT,))
    hops = [("x-prefiller-host-port", "10.0.0.2:80")]
    (reply,) = [read_reply(each) for each in call.exchange.picked(Mutation(ENDPOINT, hops, ["x-encoder-hosts-ports"]), None)]
    assert (reply.kind, reply.set, reply.removed, reply.replaced) == (3, {}, [], None)
    assert reply.told == {"envoy.lb": {DESTINATION: ENDPOINT, "x-prefiller-host-port": "10.0.0.2:80"}}
    assert call.exchange.tells_the_end
    call.finish()


def test_so_does_one_that_brings_nothing_and_its_body_may_be_another() -> None:
    """Envoy before 1.34 says nothing of modes."""
    call = Call()
    assert call.ask(ext_proc.body(REQUEST_BODY, b"{}", is_end=True)) == Question({}, b"{}", False, None)
    (reply,) = call.pick(b"[]")
    assert (reply.kind, reply.replaced, reply.told) == (3, b"[]", {"envoy.lb": {DESTINATION: ENDPOINT}})


@pytest.mark.parametrize("mode", [FULL_DUPLEX, ext_proc.STREAMED])
def test_a_body_that_comes_first_and_is_not_whole_is_refused(mode: int) -> None:
    with pytest.raises(RefusedError, match="BUFFERED") as error:
        Call().send(ext_proc.body(REQUEST_BODY, b"{", more=ext_proc.modes(mode)))
    assert error.value.status == 500


def test_another_body_is_sent_in_its_place() -> None:
    buffered = Call()
    buffered.send(begin(BUFFERED))
    buffered.ask(ext_proc.body(REQUEST_BODY, b"{}", is_end=True))
    (reply,) = buffered.pick(b'{"model":"m"}')
    assert (reply.replaced, reply.set["content-length"]) == (b'{"model":"m"}', "13")
    streamed = Call()
    streamed.ask(begin(), ext_proc.body(REQUEST_BODY, b"{}", is_end=True))
    first, *rest = streamed.pick(b'{"model":"m"}')
    assert (first.set["content-length"], body_of(rest)) == ("13", b'{"model":"m"}')


def test_a_body_whose_length_the_client_did_not_give_stays_without_one() -> None:
    call = Call()
    call.ask(ext_proc.headers(REQUEST_HEADERS, {":path": "/"}, more=ext_proc.modes(FULL_DUPLEX)), ext_proc.body(REQUEST_BODY, b"{}", is_end=True))
    assert call.pick()[0].set == {DESTINATION: ENDPOINT}


def test_trailers_end_a_body_and_go_after_it() -> None:
    call = Call()
    assert call.ask(begin(), ext_proc.body(REQUEST_BODY, b"{}"), ext_proc.trailers(6)).body == b"{}"
    first, piece, last = call.pick()
    assert (first.kind, first.set) == (1, {DESTINATION: ENDPOINT})
    assert (piece.body, piece.is_end, last.kind) == (b"{}", False, 5)


@pytest.mark.parametrize("mode", [ext_proc.STREAMED, 3])
def test_a_mode_in_which_headers_do_not_wait_is_refused(mode: int) -> None:
    with pytest.raises(RefusedError, match="FULL_DUPLEX_STREAMED") as error:
        Call().send(begin(mode))
    assert error.value.status == 500


def test_a_body_over_the_limit_is_asked_about_and_passed_on_as_it_comes() -> None:
    call = Call(limit=100)
    question = call.ask(begin(), ext_proc.body(REQUEST_BODY, b"a" * 60), ext_proc.body(REQUEST_BODY, b"b" * 60))
    assert (question.body, question.is_cut) == (None, True)
    first, piece = call.pick()
    assert (first.set, piece.body, piece.is_end) == ({DESTINATION: ENDPOINT}, b"a" * 60 + b"b" * 60, False)
    assert call.room.bytes_left == 10 * LIMIT
    assert call.send(ext_proc.body(REQUEST_BODY, b"c" * 100))[0].body == b"c" * 100
    assert body_of(call.send(ext_proc.body(REQUEST_BODY, b"d" * 100_000, is_end=True))) == b"d" * 100_000
    assert call.send(ext_proc.body(REQUEST_BODY, b"e", is_end=True)) == []


def test_a_buffered_body_over_the_limit_stays_with_the_gateway() -> None:
    call = Call(limit=10)
    call.send(begin(BUFFERED))
    assert call.ask(ext_proc.body(REQUEST_BODY, b"a" * 60, is_end=True)).is_cut
    assert [(reply.kind, reply.replaced) for reply in call.pick()] == [(3, None)]


@pytest.mark.rule("G1")
def test_all_calls_together_have_a_limit() -> None:
    call = Call(room=100)
    other = Exchange(call.room, LIMIT)
    assert list(other.receive(begin())) == []
    assert list(other.receive(ext_proc.body(REQUEST_BODY, b"x" * 60))) == []
    call.send(begin())
    with pytest.raises(RefusedError, match="too many") as error:
        call.send(ext_proc.body(REQUEST_BODY, b"x" * 60))
    assert (error.value.status, error.value.retry_after_s) == (429, 1)
    other.close()
    assert call.room.bytes_left == 100


def test_what_comes_of_the_request_after_its_end_is_passed_over() -> None:
    """Envoy may repeat the last piece of a long body."""
    call = Call()
    call.ask(begin(), ext_proc.body(REQUEST_BODY, b"{}", is_end=True))
    call.pick()
    assert call.send(ext_proc.body(REQUEST_BODY, b"{}", is_end=True), begin()) == []
    assert call.exchange.take_question() is None


def test_a_refused_call_says_nothing_more() -> None:
    call = Call()
    call.ask(begin(), ext_proc.body(REQUEST_BODY, b"{}", is_end=True))
    reply = read_reply(call.exchange.refused(404, b"no", [("content-type", "text/plain")], "why"))
    assert (reply.kind, reply.status, reply.body) == (7, 404, b"no")
    assert call.send(ext_proc.headers(RESPONSE_HEADERS, {":status": "404"}, is_end=True)) == []
    assert call.exchange.is_refused
    assert not call.exchange.is_over
    call.finish()


def test_a_gateway_that_only_asks_does_not_tell_when_the_request_is_over() -> None:
    call = Call()
    call.ask(ext_proc.headers(REQUEST_HEADERS, PATH, name=2), ext_proc.body(REQUEST_BODY, b"{}", is_end=True))
    first, piece = call.pick()
    assert (first.set[DESTINATION], piece.body) == (ENDPOINT, b"{}")
    assert (call.exchange.tells_the_end, call.exchange.is_over) == (False, False)


def test_one_that_says_how_it_sends_bodies_does() -> None:
    call = Call()
    call.ask(begin(is_end=True))
    assert call.exchange.tells_the_end


# Responses


def answered(response: int, *, is_end: bool = False, **headers: str) -> Call:
    """A call whose response headers came."""
    call = Call()
    call.ask(begin(response=response, is_end=True))
    call.pick()
    head = {":status": "200", **{name.replace("_", "-"): value for name, value in headers.items()}}
    (reply,) = call.send(ext_proc.headers(RESPONSE_HEADERS, head, is_end=is_end, more=ext_proc.served(ENDPOINT)))
    assert (reply.kind, reply.set) == (2, {})
    return call


def test_where_the_body_is_not_shown_the_headers_are_the_end() -> None:
    call = answered(NONE)
    assert (call.exchange.served, call.exchange.status, call.exchange.is_over) == (ENDPOINT, "200", True)


def test_a_body_in_full_duplex_is_sent_back_to_its_end() -> None:
    call = answered(FULL_DUPLEX)
    assert not call.exchange.is_over
    (reply,) = call.send(ext_proc.body(RESPONSE_BODY, b"data: 1\n\n"))
    assert (reply.kind, reply.body, reply.is_end) == (4, b"data: 1\n\n", False)
    replies = call.send(ext_proc.body(RESPONSE_BODY, b"x" * (PIECE_BYTES + 1), is_end=True))
    assert [(len(reply.body), reply.is_end) for reply in replies] == [(PIECE_BYTES, False), (1, True)]
    assert call.exchange.is_over
    assert call.exchange.pieces_echoed == 2


def test_an_empty_end_and_trailers() -> None:
    call = answered(FULL_DUPLEX)
    (reply,) = call.send(ext_proc.body(RESPONSE_BODY, b"", is_end=True))
    assert (reply.body, reply.is_end, call.exchange.is_over) == (b"", True, True)
    call = answered(FULL_DUPLEX)
    call.send(ext_proc.body(RESPONSE_BODY, b"x"))
    assert ([reply.kind for reply in call.send(ext_proc.trailers(7))], call.exchange.is_over) == ([6], True)


def test_a_buffered_body_is_left_as_it_is() -> None:
    call = answered(BUFFERED)
    (reply,) = call.send(ext_proc.body(RESPONSE_BODY, b"abc", is_end=True))
    assert (reply.kind, reply.body, reply.replaced, call.exchange.is_over) == (4, b"", None, True)


USAGE = b'{"usage":{"prompt_tokens_details":{"cached_tokens":16}}}'


@pytest.mark.parametrize(("headers", "cached"), [({}, 16), ({"content_encoding": "gzip"}, None)])
def test_the_usage_of_a_response_that_passes_through(headers: dict[str, str], cached: int | None) -> None:
    call = answered(FULL_DUPLEX, **headers)
    call.send(ext_proc.body(RESPONSE_BODY, USAGE, is_end=True))
    assert call.exchange.cached_tokens() == cached


def test_a_response_without_a_body_is_over_at_once() -> None:
    call = answered(FULL_DUPLEX, is_end=True)
    assert (call.exchange.is_over, call.exchange.cached_tokens()) == (True, None)
