"""Which routes `--compat` adds, and what they need to know of the streams of this process."""

from collections.abc import Iterable
from functools import partial

from fastapi import APIRouter

from indexer.config.settings import Settings
from indexer.core.events import Event
from indexer.core.names import StreamKey
from indexer.core.stream_state import StreamState
from indexer.http.access import Access
from indexer.http.routes import Pods
from scorer_api.api.resolve import RequestResolver
from scorer_api.compat import dynamo, mooncake
from scorer_api.compat.dumps import BlockTables
from scorer_api.compat.hash_chains import HashChains
from scorer_api.index.view import View


class Streams:
    """The streams that run in this process, where it is the only one. `chains`: model → its chains of local hashes. `table`: see `BlockTables`."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.chains: dict[str, HashChains] = {}
        self.table: BlockTables = lambda _: None

    def observe(self, key: StreamKey, events: Iterable[Event], state: StreamState) -> None:
        """A stream has applied these events."""
        chains = self.chains.get(key.model)
        if chains is None:
            chains = HashChains(partial(self._view.are_held, key.model), partial(self._view.count_blocks, key.model))
            self.chains[key.model] = chains
        chains.follow(events, state)


def add_compat(
    router: APIRouter, settings: Settings, view: View, pods: Pods, resolver: RequestResolver, access: Access, streams: Streams | None
) -> None:
    """Add the routes of the indexer that `--compat` names, if it does. `streams`: None where streams do not run here, or not here alone."""
    if settings.compat == "dynamo":
        chains, tables = (None, None) if streams is None else (streams.chains, streams.table)
        dynamo.add_dynamo(router, settings, view, pods, resolver, access, chains, tables)
    elif settings.compat == "mooncake":
        mooncake.add_mooncake(router, settings, view, pods, resolver, access)


def open_paths(settings: Settings) -> frozenset[str]:
    """Those that need no token."""
    return frozenset({dynamo.HEALTH}) if settings.compat == "dynamo" else frozenset()


def direct_paths(settings: Settings) -> frozenset[str]:
    """Those that are called past the web framework."""
    return {"dynamo": dynamo.DIRECT, "mooncake": mooncake.DIRECT}.get(settings.compat, frozenset())
