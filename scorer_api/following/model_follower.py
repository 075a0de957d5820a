"""Following one shard of a model, which is all of it where there is one shard: three kinds of tasks work on what is known of it.

log      XREAD at a steady pace ──▶ judge ──▶ apply, or empty, or close, or load                                            log_reader
survey   every second: until when streams are trusted; states compared with what is held                               survey
load     read a snapshot of the state, its blocks into room of their own, apply the entries since, exchange for what was held    reloader, loading
"""

import asyncio
from collections.abc import Iterable

from indexer.core.names import StreamKey
from indexer.store.keyspace import Shard
from scorer_api.following.followed_model import FollowedModel, FollowerContext
from scorer_api.following.followed_stream import FollowedStream
from scorer_api.following.log_reader import LogReader
from scorer_api.following.reloader import Reloader
from scorer_api.following.survey import Surveyor


class ModelFollower:
    """`run` ends with its cancellation; `close` forgets all streams then."""

    def __init__(self, shard: Shard, context: FollowerContext) -> None:
        self.shard = shard
        self.missing_since_s: float | None = None
        """Since when no indexer has the model, by the monotonic clock."""
        self._tasks = asyncio.TaskGroup()
        self._known = FollowedModel(shard, context)
        reloader = Reloader(self._known, context, self._tasks)
        self._surveyor = Surveyor(self._known, context, reloader)
        self._log_reader = LogReader(self._known, context, reloader, self._surveyor)
        self._is_settled = False

    @property
    def streams(self) -> dict[str, FollowedStream]:
        """Every stream that is followed, by its name in Redis."""
        return self._known.streams

    @property
    def is_settled(self) -> bool:
        """Whether all that there was at first is loaded."""
        if not self._is_settled:
            self._is_settled = self._surveyor.has_compared and not self._known.loads
        return self._is_settled

    async def run(self) -> None:
        """Follow for good."""
        async with self._tasks as tasks:
            tasks.create_task(self._surveyor.run(), name=f"survey {self.shard.model} {self.shard.number}")
            tasks.create_task(self._log_reader.run(), name=f"log {self.shard.model} {self.shard.number}")

    def expect(self, registered: Iterable[StreamKey]) -> None:
        """These streams are registered: they are shown even while nothing is known of them."""
        self._known.expect(registered)

    def close(self) -> None:
        """Forget all streams, after the end of `run`."""
        for stream in list(self._known.streams.values()):
            self._known.close(stream)
