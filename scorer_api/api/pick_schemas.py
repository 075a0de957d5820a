"""The body of a refused pick."""

import msgspec
from msgspec import Struct

ERROR_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "service_unavailable_error",
}
"""Status → what OpenAI's API calls such an error."""


class ErrorDetails(Struct, frozen=True):
    """What is wrong, as clients of OpenAI's API read it."""

    message: str
    type: str
    code: int
    param: str | None = None


class PickError(Struct, frozen=True):
    """No pod is picked. A gateway passes this on to its client."""

    error: ErrorDetails


def encoded_error(status: int, message: str) -> bytes:
    """The body, in JSON. `status`: one of ERROR_TYPES."""
    return msgspec.json.encode(PickError(ErrorDetails(message, ERROR_TYPES[status], status)))
