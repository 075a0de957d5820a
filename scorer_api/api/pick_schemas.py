"""The body of a refused pick."""

from msgspec import Struct


class ErrorDetails(Struct, frozen=True):
    """What is wrong, as clients of OpenAI's API read it."""

    message: str
    type: str
    code: int
    param: str | None = None


class PickError(Struct, frozen=True):
    """No pod is picked. A gateway passes this on to its client."""

    error: ErrorDetails
