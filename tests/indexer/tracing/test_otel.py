"""What becomes of spans of other processes, as a receiver of OTLP sees it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from types import TracebackType

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult

from indexer.tracing import otel
from indexer.tracing.current import pack_span, unpack_spans
from indexer.tracing.otel import OtelTracer, make_exporter
from tests.otlp_receiver import OtlpReceiver, SpanSeen
from tests.waiting import wait_until

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


class Odd:
    """`with Odd(answer) as url:` a receiver that says this to whoever connects, over and over, or nothing and waits."""

    def __init__(self, answer: bytes, again: bytes = b"") -> None:
        self._answer, self._again = answer, again

    def __enter__(self) -> str:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.sent = 0
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError), ExitStack() as stack:
            while True:
                peer = stack.enter_context(self._listener.accept()[0])
                threading.Thread(target=self._answer_to, args=(peer,), daemon=True).start()

    def _answer_to(self, peer: socket.socket) -> None:
        with suppress(OSError):
            peer.recv(1)
            peer.sendall(self._answer)
            while self._again:
                self.sent += peer.send(self._again)


def is_ending() -> bool:
    return any(thread.name == "end of traces" for thread in threading.enumerate())


def test_a_receiver_that_does_not_answer_keeps_no_service_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "SHUTDOWN_S", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with Odd(b"") as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        tracer = OtelTracer({})
        tracer.past("whole", {}, ("part", 1_000))
        tracer.shutdown()
        assert is_ending(), "the library waits for an answer"
        wait_until(lambda: not is_ending(), what="its end")


def test_an_answer_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = Odd(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\r\n", again=b"x" * 65_536)
    with endless as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        exporter = make_exporter({})
        assert exporter.export([]) is SpanExportResult.SUCCESS
        assert endless.sent < 32 * 2**20, "no more than fits into the buffers of two sockets"
        exporter.shutdown()


HOSTILE = {
    "traceparent": ["", "x" * 60_000, f"00-{'0' * 32}-{'0' * 16}-01", "ff-\xff\xfe", f"00-{FIRST[0]}-{FIRST[1]}", "00-" * 20_000],
    "tracestate": [
        "=" * 60_000,
        " ,\t" * 20_000,
        f"a={'b' * 60_000}",
        ",".join(f"k{number}=v" for number in range(5_000)),
        "\xff=\x00",
        "a=b," * 9_000,
    ],
}


def test_no_header_of_a_trace_does_harm(receiver: OtlpReceiver) -> None:
    """What cannot be read begins a trace, or is left out; what is passed on stays short."""
    tracer, cases = OtelTracer({}), [(name, value) for name, values in HOSTILE.items() for value in values]
    for name, value in cases:
        with tracer.request("asked", {"traceparent": f"00-{FIRST[0]}-{FIRST[1]}-01", name: value}, {}) as span:
            assert sum(map(len, span.headers().values())) < 10_000
    tracer.shutdown()
    parents = [span.parent for span in receiver.named("asked")]
    assert parents == [FIRST[1] if name == "tracestate" else "" for name, _ in cases]
