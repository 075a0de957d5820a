"""Registering and unregistering one rank of a pod at a time, as other indexers' clients do."""

import asyncio

from indexer.config.settings import Settings
from indexer.engines.resolver import check_names
from indexer.engines.spec import EngineSpec
from indexer.errors import SettingError, StoreError
from indexer.http.problems import Problem
from indexer.http.routes import Pods
from indexer.streams.pool import without_rank
from scorer_api.index.view import View


class Conflict(Exception):
    """What is to be registered contradicts what is registered already."""


class Registrations:
    """`block_sizes`: model → the block size that its first client registered, while it has pods."""

    def __init__(self, settings: Settings, view: View, pods: Pods) -> None:
        self._networks = settings.engine_networks
        self._view = view
        self._pods = pods
        self._block_sizes: dict[str, int] = {}
        self._changing = asyncio.Lock()

    def block_size(self, model: str) -> int | None:
        """Of a model: what its engines announce, or else what was registered here."""
        cuts = self._view.cuts(model)
        if cuts:
            return cuts[0][0]
        return self._block_sizes.get(model) if self._view.has_model(model) else None

    async def register(self, spec: EngineSpec, block_size: int) -> None:
        """Add the rank that the spec names. Raises Conflict, and Problem 400 for endpoints that cannot be dialled, 503 without Redis."""
        rank = spec.stream_ranks[0]
        async with self._changing:
            known = self._pods.specs(spec.pod)
            if known and known[0].model != spec.model:
                raise Conflict(f"instance {spec.pod} is already registered for another model, {known[0].model}")
            if any(rank in each.stream_ranks for each in known):
                raise Conflict(f"instance {spec.pod} dp_rank {rank} already registered")
            existing = self.block_size(spec.model)
            if existing is not None and existing != block_size:
                raise Conflict(f"block_size mismatch for model {spec.model}: existing={existing}, requested={block_size}")
            await self._replace((*known, spec))
            self._block_sizes[spec.model] = block_size

    async def unregister(self, pod: str, rank: int | None = None) -> None:
        """Remove one rank of a known pod, or all. Raises Problem 503 without Redis."""
        async with self._changing:
            left = () if rank is None else without_rank(self._pods.specs(pod), rank)
            if left:
                await self._replace(left)
                return
            try:
                await self._pods.forget(pod)
            except StoreError as error:
                raise Problem(503, str(error)) from None

    async def _replace(self, specs: tuple[EngineSpec, ...]) -> None:
        try:
            await check_names(specs[-1], self._networks)
            await self._pods.register(specs)
        except SettingError as error:
            raise Problem(400, f"{error.key}: {error.allowed}") from None
        except StoreError as error:
            raise Problem(503, str(error)) from None


def spec_of(pod: str, model: str, endpoint: str, replay_endpoint: str | None, rank: int) -> EngineSpec:
    """Raises Problem 400 for what is no endpoint."""
    given = {"pod": pod, "model": model, "events": endpoint, "rank": rank} | ({"replay": replay_endpoint} if replay_endpoint else {})
    try:
        return EngineSpec.from_mapping(given, "spec")
    except SettingError as error:
        raise Problem(400, error.allowed) from None
