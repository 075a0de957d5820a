"""The room for bodies of requests, one for a process."""


class BodyRoom:
    """`bytes_left`: how many bytes the bodies of further requests may have, over HTTP, gRPC and from gateways together."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_left = bytes_max
