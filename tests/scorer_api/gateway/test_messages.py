"""ext_proc's messages, against an encoder and a decoder of the tests' own."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer_api.gateway import messages
from scorer_api.gateway.messages import (
    BodyModes,
    Mutation,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    read_message,
)
from scorer_api.rpc.protobuf import MalformedError
from tests import ext_proc
from tests.ext_proc import DESTINATION, read_reply

PATH = {":path": "/v1/completions", "x-session-id": "s"}


@pytest.mark.parametrize("name", [2, 3])
def test_request_headers(name: int) -> None:
    """Envoy sends values as raw bytes under 3, others send texts under 2."""
    given = {**PATH, ":authority": "example.org", "cookie": "secret"}
    data = ext_proc.headers(ext_proc.REQUEST_HEADERS, given, name=name, more=ext_proc.modes(ext_proc.FULL_DUPLEX, ext_proc.NONE))
    assert read_message(data) == RequestHeaders(PATH, False, BodyModes(4, 0), None)


def test_names_of_headers_in_any_case_and_a_value_twice() -> None:
    assert read_message(ext_proc.headers(2, {"Content-Type": "a", "content-type": "b"}, is_end=True)) == RequestHeaders({"content-type": "b"}, True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ext_proc.text_value("10.0.0.1:80, 10.0.0.2"), ("10.0.0.1:80", "10.0.0.2")),
        (ext_proc.list_value(["10.0.0.1:80", "[::1]:80"]), ("10.0.0.1:80", "[::1]:80")),
        (ext_proc.list_value([]), ()),
        (ext_proc.text_value(""), ()),
        (ext_proc.message((4, 1)), None),
    ],
)
def test_the_endpoints_to_choose_from(value: bytes, expected: tuple[str, ...] | None) -> None:
    assert read_message(ext_proc.headers(2, PATH, more=ext_proc.subset(value))) == RequestHeaders(PATH, False, None, expected)


def test_metadata_of_others_is_passed_over() -> None:
    for namespace, key in (("envoy.lb", "x-gateway-destination-endpoint-subset"), ("envoy.lb.subset_hint", "x")):
        data = ext_proc.headers(2, PATH, more=ext_proc.metadata(namespace, key, ext_proc.text_value("10.0.0.1:80")))
        assert read_message(data) == RequestHeaders(PATH, False, None, None)


def test_response_headers_say_who_served() -> None:
    data = ext_proc.headers(3, {":status": "200", "server": "uvicorn"}, is_end=True, more=ext_proc.served("10.0.0.1:80"))
    assert read_message(data) == ResponseHeaders({":status": "200"}, True, None, "10.0.0.1:80")


def test_bodies_and_trailers() -> None:
    assert read_message(ext_proc.body(4, b"abc", is_end=True)) == RequestBody(memoryview(b"abc"), True)
    assert read_message(ext_proc.body(5, b"", is_end=False)) == ResponseBody(memoryview(b""), False)
    assert read_message(ext_proc.trailers(6)) == RequestTrailers()
    assert read_message(ext_proc.trailers(7)) == ResponseTrailers()


def test_a_body_with_attributes_in_place_of_headers() -> None:
    given = {'request.headers["x-session-id"]': "s", "request.path": "/v1/completions", "request.headers": "CelMap value"}
    data = ext_proc.body(4, b"abc", is_end=True, more=ext_proc.attributes(given) + ext_proc.modes(ext_proc.BUFFERED))
    assert read_message(data) == RequestBody(memoryview(b"abc"), True, RequestHeaders(PATH, False, BodyModes(2, 0)))
    # The name may follow its value, and a value may be a number, a list, or none.
    turned = ext_proc.message((2, ext_proc.text_value("/")), (1, "request.path"))
    other = ext_proc.message((1, 'request.headers["x-session-id"]'), (2, ext_proc.list_value(["s"])))
    for struct, expected in ((ext_proc.message((1, turned)), {":path": "/"}), (ext_proc.message((1, other)), {}), (b"", {})):
        found = read_message(ext_proc.body(4, b"", more=ext_proc.message((9, ext_proc.message((1, "f"), (2, struct))))))
        assert found == RequestBody(memoryview(b""), False, RequestHeaders(expected, False))


def test_attributes_have_the_limit_of_headers() -> None:
    with pytest.raises(MalformedError, match="attributes of more than"):
        read_message(ext_proc.body(4, b"abc", more=ext_proc.attributes({"request.path": "x" * 2**20})))


def test_what_the_protocol_may_have_besides_is_passed_over() -> None:
    assert read_message(b"") is None
    assert read_message(ext_proc.message((9, b"attributes"), (99, 1))) is None
    assert read_message(ext_proc.headers(2, PATH, more=ext_proc.message((10, 1), (12, b"new")))) == RequestHeaders(PATH, False)
    # A known number with another wire type is no field that is known.
    assert read_message(ext_proc.message((2, 1))) is None


def test_headers_have_a_limit_of_their_own() -> None:
    with pytest.raises(MalformedError, match="headers of more than"):
        read_message(ext_proc.headers(2, {"cookie": "x" * 2**20}))
    with pytest.raises(MalformedError, match="fields"):
        read_message(ext_proc.message((2, ext_proc.message((1, ext_proc.message((1, b""))))))[:2] + b"\x0a\x00" * 100_000)


WHOLE = st.sampled_from(
    [
        ext_proc.headers(2, PATH, more=ext_proc.modes(4) + ext_proc.subset(ext_proc.list_value(["10.0.0.1:80", "10.0.0.2:80"]))),
        ext_proc.headers(3, {":status": "200"}, more=ext_proc.served("10.0.0.1:80")),
        ext_proc.body(4, b"{}" * 20, is_end=True),
    ]
)


@given(WHOLE, st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4), st.integers(0, 200))
def test_spoilt_messages_are_read_or_refused(data: bytes, changes: list[tuple[int, int]], length: int) -> None:
    spoilt = bytearray(data)
    for at, byte in changes:
        spoilt[at % len(spoilt)] = byte
    with suppress(MalformedError):
        read_message(bytes(spoilt[: length or None]))


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(MalformedError):
        read_message(data)


MUTATION = Mutation("10.0.0.1:80,10.0.0.2:80", [("x-prefiller-host-port", "10.0.0.3:80")], ["x-encoder-hosts-ports"])


def test_a_pick_is_told_in_a_header_and_in_metadata() -> None:
    reply = read_reply(messages.pick_in_headers(MUTATION))
    assert (reply.kind, reply.clears_route) == (1, True)
    assert reply.set == {DESTINATION: "10.0.0.1:80,10.0.0.2:80", "x-prefiller-host-port": "10.0.0.3:80"}
    assert reply.removed == ["x-encoder-hosts-ports"]
    assert reply.told == {"envoy.lb": {DESTINATION: "10.0.0.1:80,10.0.0.2:80"}}


@pytest.mark.parametrize("body", [None, b"", b"another"])
def test_a_pick_may_come_with_another_body(body: bytes | None) -> None:
    reply = read_reply(messages.pick_in_body(MUTATION, body))
    assert (reply.kind, reply.set[DESTINATION], reply.replaced) == (3, "10.0.0.1:80,10.0.0.2:80", body)
    assert reply.told == {"envoy.lb": {DESTINATION: "10.0.0.1:80,10.0.0.2:80"}}


@pytest.mark.parametrize("is_end", [True, False])
def test_pieces_of_bodies(is_end: bool) -> None:
    for kind, write in ((3, messages.request_piece), (4, messages.response_piece)):
        reply = read_reply(write(memoryview(b"abc"), is_end=is_end))
        assert (reply.kind, reply.body, reply.is_end) == (kind, b"abc", is_end)


def test_an_immediate_response() -> None:
    reply = read_reply(messages.immediate_response(503, b"{}", [("retry-after", "1")], "why"))
    assert (reply.kind, reply.status, reply.body, reply.set) == (7, 503, b"{}", {"retry-after": "1"})


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (messages.HEADERS_DONE, 1),
        (messages.RESPONSE_HEADERS_DONE, 2),
        (messages.RESPONSE_BODY_DONE, 4),
        (messages.TRAILERS_DONE, 5),
        (messages.RESPONSE_TRAILERS_DONE, 6),
    ],
)
def test_replies_that_change_nothing(sent: bytes, kind: int) -> None:
    reply = read_reply(sent)
    assert (reply.kind, reply.set, reply.removed, reply.replaced, reply.clears_route) == (kind, {}, [], None, False)
