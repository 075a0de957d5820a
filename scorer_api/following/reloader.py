"""Loads streams of one shard of a model from Redis, each in its own task, until a load is complete."""

import asyncio

from indexer.errors import StoreError
from indexer.store.keyspace import stream_id
from scorer_api.following.followed_model import FollowedModel, FollowerContext
from scorer_api.following.followed_stream import FollowedStream
from scorer_api.following.loading import Loading

# Pause while Redis does not answer.
RETRY_S = 0.1


class Reloader:
    """What a stream held goes on serving until the load is exchanged for it. The tasks belong to `tasks`."""

    def __init__(self, model: FollowedModel, context: FollowerContext, tasks: asyncio.TaskGroup) -> None:
        self._model = model
        self._context = context
        self._metrics = context.metrics
        self._tasks = tasks

    def mark_lost(self, stream: FollowedStream, reason: str) -> None:
        """What is held may be wrong: it does not count until it is loaded again."""
        stream.is_lost = True
        self._model.set_trust(stream)
        self.load(stream, reason)

    def load(self, stream: FollowedStream, reason: str) -> None:
        """Begin to load a stream that is not being loaded. `reason`: one of LOAD_REASONS."""
        name = stream_id(stream.key)
        assert name not in self._model.loads, "a stream is loaded once at a time"
        self._metrics.loads[reason].inc()
        self._metrics.loading.inc()
        task = self._tasks.create_task(self._load_until_whole(stream), name=f"load {name} of {self._model.name}")
        self._model.loads[name] = task
        task.add_done_callback(lambda _: self._metrics.loading.dec())

    async def _load_until_whole(self, stream: FollowedStream) -> None:
        try:
            while not await self._load_once(stream):
                self._metrics.loads["again"].inc()
        finally:
            if self._model.loads.get(stream_id(stream.key)) is asyncio.current_task():
                self._model.stop_loading(stream)

    async def _load_once(self, stream: FollowedStream) -> bool:
        """Returns whether the load was whole; if not, something came in between."""
        async with self._context.loads_of(self._model.shard):
            loading = Loading(stream, self._context)
            try:
                await loading.read()
            except StoreError:
                await asyncio.sleep(RETRY_S)
            finally:
                if not loading.is_whole:
                    self._context.give_back(loading.holding)
            # Nothing is awaited between the last entry and the exchange.
            if loading.is_whole and loading.version is not None:
                self._model.settle(stream, loading.holding, loading.version, loading.offset, loading.trust)
                if loading.hash_seed is not None:
                    self._context.view.note_seed(stream.key, loading.hash_seed)
            elif loading.is_missing and stream.version is None and not self._model.is_registered(stream):
                self._model.close(stream)
            return loading.is_whole
