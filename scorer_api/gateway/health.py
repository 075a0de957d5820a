"""The health of a picker, as gateways and Kubernetes ask for it: `grpc.health.v1.Health`."""

from scorer_api.rpc.protobuf import bytes_key, read_fields, text_of, varint_field

CHECK = "/grpc.health.v1.Health/Check"
PROCESSOR = "envoy.service.ext_proc.v3.ExternalProcessor"
LIVENESS = "liveness"
SCORER = "kv_indexer.v1.Scorer"
# `inference-extension`: what llm-d's charts ask for.
NAMES = ("", LIVENESS, "readiness", PROCESSOR, SCORER, "inference-extension")
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
_SERVICE = bytes_key(1)


def read_check(data: bytes) -> str:
    """The name that a HealthCheckRequest asks for. Raises MalformedError."""
    return next((text_of(value) for key, value in read_fields(memoryview(data)) if key == _SERVICE), "")


def health_of(name: str, *, is_serving: bool) -> bytes:
    """A HealthCheckResponse. A process that starts or drains is alive, and is to get no requests."""
    if name not in NAMES:
        return varint_field(1, SERVICE_UNKNOWN)
    return varint_field(1, SERVING if is_serving or name == LIVENESS else NOT_SERVING)
