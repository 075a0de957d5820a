"""ext_proc's messages, against those that protobuf writes and reads by Envoy's own definitions (xds-protos, in a folder of its own)."""

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer_api.gateway import messages
from scorer_api.gateway.messages import (
    ATTRIBUTES,
    HEADERS_DONE,
    REQUEST_HEADERS,
    RESPONSE_BODY_DONE,
    RESPONSE_HEADERS,
    RESPONSE_HEADERS_DONE,
    RESPONSE_TRAILERS_DONE,
    TRAILERS_DONE,
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
from tests.running import ROOT

FOLDER = ROOT / "build/protos"
DESTINATION = "x-gateway-destination-endpoint"


def _load() -> Any:
    """Envoy's messages. Its package has the name of the one that brings the binary, which no test imports."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("envoy.service.ext_proc.v3.external_processor_pb2")
    finally:
        sys.path.remove(str(FOLDER))


pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="xds-protos is not installed, see Makefile")
proto: Any = _load() if FOLDER.exists() else None

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.one_of(st.sampled_from(sorted(REQUEST_HEADERS | RESPONSE_HEADERS)), st.text("abcx-:", max_size=12))
header_lists = st.lists(st.tuples(names, texts, st.booleans()), max_size=12)
body_modes = st.integers(0, 4)
endpoints = st.lists(st.sampled_from(["10.0.0.7:80", "[fd00::7]:80", "10.0.0.8"]), max_size=4)


def fill(target: Any, headers: Sequence[tuple[str, str, bool]], is_end: bool) -> dict[str, str]:
    """Write headers, each as text or as raw bytes. Returns what they are, of a repeated one the last."""
    target.end_of_stream = is_end
    for name, value, is_raw in headers:
        target.headers.headers.add(key=name, **({"raw_value": value.encode()} if is_raw else {"value": value}))
    return {name: value for name, value, _ in headers}


def only(headers: dict[str, str], wanted: frozenset[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name in wanted}


@given(header_lists, st.booleans(), body_modes, body_modes, st.one_of(st.none(), endpoints), st.booleans())
def test_request_headers(
    headers: list[tuple[str, str, bool]], is_end: bool, request: int, response: int, subset: list[str] | None, is_list: bool
) -> None:
    sent = proto.ProcessingRequest()
    given_headers = fill(sent.request_headers, headers, is_end)
    sent.protocol_config.request_body_mode, sent.protocol_config.response_body_mode = request, response
    sent.attributes["envoy.filters.http.ext_proc"].update({"request.path": "/x"})
    if subset is not None:
        hint = sent.metadata_context.filter_metadata["envoy.lb.subset_hint"]
        hint.update({"other": 1.5, f"{DESTINATION}-subset": subset if is_list else ",".join(subset)})
    found = read_message(sent.SerializeToString())
    expected = None if subset is None else tuple(subset)
    assert found == RequestHeaders(only(given_headers, REQUEST_HEADERS), is_end, BodyModes(request, response), expected)


@given(st.dictionaries(st.sampled_from([*sorted(ATTRIBUTES), "request.size", "request.headers"]), st.one_of(texts, st.floats(), st.lists(texts))))
def test_a_body_with_attributes(values: dict[str, Any]) -> None:
    sent = proto.ProcessingRequest()
    sent.request_body.body, sent.request_body.end_of_stream = b"{}", True
    sent.protocol_config.request_body_mode = 2
    sent.attributes["envoy.filters.http.ext_proc"].update(values)
    expected = {ATTRIBUTES[name]: value for name, value in values.items() if name in ATTRIBUTES and isinstance(value, str)}
    assert read_message(sent.SerializeToString()) == RequestBody(memoryview(b"{}"), True, RequestHeaders(expected, False, BodyModes(2, 0)))


@given(header_lists, st.booleans(), st.one_of(st.none(), st.sampled_from(["10.0.0.7:80", "[fd00::7]:80"])))
def test_response_headers(headers: list[tuple[str, str, bool]], is_end: bool, served: str | None) -> None:
    sent = proto.ProcessingRequest()
    given_headers = fill(sent.response_headers, headers, is_end)
    if served is not None:
        sent.metadata_context.filter_metadata["envoy.lb"].update({f"{DESTINATION}-served": served})
    assert read_message(sent.SerializeToString()) == ResponseHeaders(only(given_headers, RESPONSE_HEADERS), is_end, None, served)


@given(st.binary(max_size=100), st.booleans())
def test_bodies_and_trailers(content: bytes, is_end: bool) -> None:
    for field, kind in (("request_body", RequestBody), ("response_body", ResponseBody)):
        body = proto.HttpBody(body=content, end_of_stream=is_end)
        found = read_message(proto.ProcessingRequest(**{field: body}).SerializeToString())
        assert isinstance(found, kind)
        assert (bytes(found.body), found.is_end) == (content, is_end)
    for field, of in (("request_trailers", RequestTrailers), ("response_trailers", ResponseTrailers)):
        assert isinstance(read_message(proto.ProcessingRequest(**{field: proto.HttpTrailers()}).SerializeToString()), of)


@given(header_lists, st.data())
def test_spoilt_messages_are_read_or_refused(headers: list[tuple[str, str, bool]], data: st.DataObject) -> None:
    """Cut off anywhere, and with any byte another one. What protobuf reads as headers is read, and as the same ones."""
    sent = proto.ProcessingRequest()
    fill(sent.request_headers, headers, True)
    sent.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({f"{DESTINATION}-subset": ["10.0.0.7:80"]})
    spoilt = bytearray(sent.SerializeToString())
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    spoilt = spoilt[: data.draw(st.integers(0, len(spoilt)))]
    try:
        found = read_message(bytes(spoilt))
    except MalformedError:
        return
    assert found is None or isinstance(found, messages.Message)


# What is sent


def read(content: bytes) -> Any:
    """Raises google.protobuf.message.DecodeError."""
    reply = proto.ProcessingResponse()
    reply.ParseFromString(content)
    return reply


mutations = st.builds(
    Mutation,
    st.sampled_from(["10.0.0.7:80", "10.0.0.7:80,[fd00::7]:80"]),
    st.lists(st.tuples(st.text("abcx-", min_size=1, max_size=12), texts), max_size=3),
    st.lists(st.text("abcx-", min_size=1, max_size=12), max_size=3),
)


def check_pick(reply: Any, common: Any, mutation: Mutation) -> None:
    expected = [(DESTINATION, mutation.destination), *mutation.headers]
    options = common.header_mutation.set_headers
    assert [(option.header.key, option.header.raw_value.decode()) for option in options] == expected
    assert {option.append_action for option in options} == {2}, "OVERWRITE_IF_EXISTS_OR_ADD"
    assert list(common.header_mutation.remove_headers) == list(mutation.removed)
    assert common.clear_route_cache
    assert reply.dynamic_metadata["envoy.lb"][DESTINATION] == mutation.destination


@given(mutations, st.one_of(st.none(), st.binary(max_size=50)))
def test_picks(mutation: Mutation, body: bytes | None) -> None:
    reply = read(messages.pick_in_headers(mutation))
    assert reply.WhichOneof("response") == "request_headers"
    check_pick(reply, reply.request_headers.response, mutation)
    reply = read(messages.pick_in_body(mutation, body))
    assert reply.WhichOneof("response") == "request_body"
    check_pick(reply, reply.request_body.response, mutation)
    assert reply.request_body.response.body_mutation.WhichOneof("mutation") == (None if body is None else "body")
    assert reply.request_body.response.body_mutation.body == (body or b"")


@given(st.binary(max_size=100), st.booleans())
def test_pieces(content: bytes, is_end: bool) -> None:
    for write, field in ((messages.request_piece, "request_body"), (messages.response_piece, "response_body")):
        reply = read(write(content, is_end=is_end))
        assert reply.WhichOneof("response") == field
        streamed = getattr(reply, field).response.body_mutation.streamed_response
        assert (streamed.body, streamed.end_of_stream) == (content, is_end)


@given(st.sampled_from([400, 404, 429, 500, 503]), st.binary(max_size=50), st.lists(st.tuples(st.text("abc", min_size=1), texts), max_size=3), texts)
def test_refusals(status: int, body: bytes, headers: list[tuple[str, str]], details: str) -> None:
    reply = read(messages.immediate_response(status, body, headers, details)).immediate_response
    assert (reply.status.code, reply.body, reply.details) == (status, body, details)
    assert [(option.header.key, option.header.raw_value.decode()) for option in reply.headers.set_headers] == headers


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (HEADERS_DONE, "request_headers"),
        (RESPONSE_HEADERS_DONE, "response_headers"),
        (RESPONSE_BODY_DONE, "response_body"),
        (TRAILERS_DONE, "request_trailers"),
        (RESPONSE_TRAILERS_DONE, "response_trailers"),
    ],
)
def test_replies_that_change_nothing(content: bytes, field: str) -> None:
    reply = read(content)
    assert reply.WhichOneof("response") == field
    if field.endswith(("headers", "body")):
        assert getattr(reply, field).response == proto.CommonResponse()
