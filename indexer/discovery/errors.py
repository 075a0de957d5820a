"""Why a source cannot be read."""

from typing import Literal, get_args

from indexer.errors import IndexerError

Trouble = Literal["unreachable", "timeout", "unauthorized", "forbidden", "missing", "expired", "status", "malformed", "too_large", "cut"]
TROUBLES: tuple[Trouble, ...] = get_args(Trouble)
"""Values of the `reason` label of `kv_indexer_discovery_errors_total`."""


class SourceError(IndexerError):
    """A source of engines did not answer as it should. Attributes: `reason`, as the metric has it."""

    def __init__(self, reason: Trouble, why: str) -> None:
        super().__init__(why)
        self.reason: Trouble = reason
