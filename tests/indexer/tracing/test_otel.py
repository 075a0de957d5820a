"""What becomes of spans of other processes, as a receiver of OTLP sees it."""

from collections.abc import Iterator

import pytest

from indexer.tracing.current import pack_span, unpack_spans
from indexer.tracing.otel import OtelTracer
from tests.otlp_receiver import OtlpReceiver, SpanSeen

# Ids of trace and span, as they are written in a `traceparent`.
FIRST = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
SECOND = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
PACKED = bytes.fromhex("".join(FIRST)) + bytes.fromhex("".join(SECOND))


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """The exporter is told of it."""
    with OtlpReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_url)
        yield receiver


def sent(receiver: OtlpReceiver, *all_follows: bytes) -> list[SpanSeen]:
    """What arrives for something past that follows from each of these."""
    tracer = OtelTracer({})
    for follows in all_follows:
        tracer.past("whole", {}, ("part", 1_000), follows=follows)
    tracer.shutdown()
    return receiver.named("whole")


def test_what_follows_from_spans_is_a_part_of_the_first_and_links_to_the_others(receiver: OtlpReceiver) -> None:
    (whole,) = sent(receiver, PACKED)
    assert (whole.trace, whole.parent, whole.links) == (*FIRST, (SECOND,))
    (part,) = receiver.named("part")
    assert (part.trace, part.parent) == (FIRST[0], whole.span)


@pytest.mark.parametrize("follows", [b"", b"x", PACKED[:-1], bytes(24), bytes(16) + b"x" * 8, b"x" * 16 + bytes(8)])
def test_what_is_no_span_is_passed_over(receiver: OtlpReceiver, follows: bytes) -> None:
    (whole,) = sent(receiver, follows)
    assert (whole.parent, whole.links) == ("", ())
    assert unpack_spans(follows) == []


def test_no_more_spans_than_a_few_are_followed_from() -> None:
    many = [bytes([number]) * 24 for number in range(1, 101)]
    assert [trace & 255 for trace, _ in unpack_spans(b"".join(many))] == list(range(1, 17))


def test_an_exemplar_names_the_span() -> None:
    assert pack_span({"trace_id": FIRST[0], "span_id": FIRST[1]}) == PACKED[:24]
