"""Resolves the names of engines to checked addresses. An engine is dialled by its address: its name might resolve to another one by then."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from indexer.engines.networks import EngineNetworks, endpoints_of, has_name, literal
from indexer.engines.spec import EngineSpec, at_address, host_of, port_of
from indexer.errors import SettingError, UnresolvedError
from indexer.receiving.addresses import reachable

log = logging.getLogger(__name__)

# A client that registers a pod waits for this.
RESOLVE_S = 3.0
# While an engine is not connected, its name is resolved again at this interval.
AGAIN_S = 2.0


async def check_names(spec: EngineSpec, networks: EngineNetworks) -> None:
    """Raises SettingError if an endpoint has an address outside the networks.

    A name without an address is no mistake: DNS learns of a new pod when it is ready. It is looked up, and checked, again before it is dialled.
    """
    networks.check(spec)
    for key, endpoint in endpoints_of(spec):
        with suppress(UnresolvedError):
            await address_of(endpoint, key, networks)


async def address_of(endpoint: str, key: str, networks: EngineNetworks) -> str:
    """The endpoint with an address in place of its name: one of a family that is answered, if the name has both.

    Raises SettingError unless all addresses of the name are in the networks, UnresolvedError if it has none at present.
    """
    host = host_of(endpoint)
    if host is None or not has_name(endpoint):
        return endpoint
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise UnresolvedError(key, endpoint, f"{host} could not be resolved within {RESOLVE_S:g} s") from None
    except (OSError, UnicodeError) as error:
        raise UnresolvedError(key, endpoint, f"{host} cannot be resolved: {getattr(error, 'strerror', None) or error}") from None
    addresses = {str(text): address for *_, (text, *_) in found if (address := literal(str(text)))}
    for address in addresses.values():
        networks.check_address(address, key, endpoint)
    at = await reachable(addresses, port_of(endpoint) or 0)
    if at is None:
        raise UnresolvedError(key, endpoint, f"{host} has no address")
    return at_address(endpoint, at)


class EndpointWatcher:
    """Connects one stream to the address of its engine's name, again when that changes.

    `is_due`: whether the stream needs a connection. `connect`: called with the events and replay endpoints whenever they changed. `report`: called
    with the reason why an endpoint cannot be resolved, whenever that changed.
    """

    def __init__(
        self,
        networks: EngineNetworks,
        events: str | None,
        replay: str | None,
        *,
        is_due: Callable[[], bool],
        connect: Callable[[str | None, str | None], Awaitable[None]],
        report: Callable[[str], None],
    ) -> None:
        self._networks = networks
        self._endpoints = (("events", events), ("replay", replay))
        self._is_due = is_due
        self._connect = connect
        self._report = report
        self._at: list[str | None] | None = None
        self._problem: str | None = None

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            if self._must_resolve():
                try:
                    await self._resolve()
                except SettingError as error:
                    self._note(error.allowed)
                except Exception:
                    log.exception("dialling failed")
            await asyncio.sleep(AGAIN_S)

    def _must_resolve(self) -> bool:
        return self._at is None or self._is_due()

    async def _resolve(self) -> None:
        at = [endpoint and await address_of(endpoint, key, self._networks) for key, endpoint in self._endpoints]
        self._problem = None
        if at != self._at and self._must_resolve():
            await self._connect(*at)
            self._at = at

    def _note(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._report(problem)
