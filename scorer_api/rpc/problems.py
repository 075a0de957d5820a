"""Refusals as gRPC has them: a status code, the sentence, and in its details the problem that HTTP clients get."""

from msgspec import Struct

from indexer.http.problems import Problem, details_of
from scorer_api.rpc.protobuf import bytes_field, varint_field
from scorer_api.rpc.schema import SCHEMA
from scorer_api.rpc.writing import encode

DETAILS = "grpc-status-details-bin"
"""Where a status has its details, as a `google.rpc.Status`."""
_TYPES = "type.googleapis.com/"
# A status travels in headers, of which clients take 8 KiB. It has the sentence three times, once with up to three bytes for each of its bytes.
SENTENCE_BYTES_MAX = 1_000
_END_BYTES = 400

# Numbers of codes by their names (grpc.io/docs/guides/status-codes).
CODES = {
    "OK": 0,
    "CANCELLED": 1,
    "INVALID_ARGUMENT": 3,
    "NOT_FOUND": 5,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}
_CODE_OF_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    422: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
}


class Refusal(Struct, frozen=True):
    """`code`: its name. `details`: the encoded google.rpc.Status."""

    code: str
    message: str
    details: bytes


def refusal_of(problem: Problem) -> Refusal:
    """What the client gets."""
    code = _CODE_OF_STATUS.get(problem.status, "INTERNAL")
    sentence = _shortened(problem.detail)
    details = _any(f"{SCHEMA.package}.Problem", encode("Problem", details_of(problem.status, sentence)))
    if problem.retry_after_s is not None:
        # RetryInfo has a Duration, which has seconds.
        details += _any("google.rpc.RetryInfo", bytes_field(1, varint_field(1, problem.retry_after_s)))
    return Refusal(code, sentence, varint_field(1, CODES[code]) + bytes_field(2, sentence.encode()) + details)


def _shortened(sentence: str) -> str:
    """Without its middle where it is long: that is what the client sent, and the ends say what is wrong."""
    content = sentence.encode()
    if len(content) <= SENTENCE_BYTES_MAX:
        return sentence
    begin, end = content[: SENTENCE_BYTES_MAX - _END_BYTES - len(" … ".encode())], content[-_END_BYTES:]
    return f"{begin.decode(errors='ignore')} … {end.decode(errors='ignore')}"


def _any(name: str, content: bytes) -> bytes:
    return bytes_field(3, bytes_field(1, (_TYPES + name).encode()) + bytes_field(2, content))
