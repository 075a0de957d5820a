"""Dialling engines that were registered by name: at an address that was looked at, never by the name, which may mean another one by then."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from indexer.engines.networks import EngineNetworks, endpoints_of, has_name, literal
from indexer.engines.spec import EngineSpec, at_address, host_of
from indexer.errors import SettingError

log = logging.getLogger(__name__)

# Who registers a pod waits for this.
RESOLVE_S = 3.0
# While an engine is not connected its name may come to mean another address.
AGAIN_S = 2.0


async def check_names(spec: EngineSpec, networks: EngineNetworks) -> None:
    """Raises SettingError for an endpoint that has no address, or one outside the networks."""
    networks.check(spec)
    for key, endpoint in endpoints_of(spec):
        await address_of(endpoint, key, networks)


async def address_of(endpoint: str, key: str, networks: EngineNetworks) -> str:
    """The endpoint with an address in place of its name; all that the name has are in the networks. Raises SettingError."""
    host = host_of(endpoint)
    if host is None or not has_name(endpoint):
        return endpoint
    try:
        async with asyncio.timeout(RESOLVE_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise SettingError(key, endpoint, f"{host} could not be resolved within {RESOLVE_S:g} s") from None
    except (OSError, UnicodeError) as error:
        raise SettingError(key, endpoint, f"{host} cannot be resolved: {getattr(error, 'strerror', None) or error}") from None
    # An engine listens on IPv4 in most cases, and libzmq would dial that first.
    addresses = [address for _, _, _, _, (text, *_) in sorted(found, key=lambda each: each[0] != socket.AF_INET) if (address := literal(str(text)))]
    if not addresses:
        raise SettingError(key, endpoint, f"{host} has no address")
    for address in addresses:
        networks.check_address(address, key, endpoint)
    return at_address(endpoint, str(addresses[0]))


class Dialling:
    """Keeps one stream at the address that its engine's name has. The caller says how to connect, and whether that is due."""

    def __init__(
        self,
        networks: EngineNetworks,
        events: str | None,
        replay: str | None,
        *,
        is_due: Callable[[], bool],
        connect: Callable[[str | None, str | None], Awaitable[None]],
        tell: Callable[[str], None],
    ) -> None:
        """`connect` is told where events and replays are, whenever that changed; `tell` what is in the way, whenever that did."""
        self._networks = networks
        self._endpoints = (("events", events), ("replay", replay))
        self._is_due = is_due
        self._connect = connect
        self._tell = tell
        self._at: list[str | None] | None = None
        self._trouble: str | None = None

    async def run(self) -> None:
        """Cancel it."""
        while True:
            if self._wants_look():
                try:
                    await self._look()
                except SettingError as error:
                    self._note(error.allowed)
                except Exception:
                    log.exception("dialling failed")
            await asyncio.sleep(AGAIN_S)

    def _wants_look(self) -> bool:
        return self._at is None or self._is_due()

    async def _look(self) -> None:
        at = [endpoint and await address_of(endpoint, key, self._networks) for key, endpoint in self._endpoints]
        self._trouble = None
        if at != self._at and self._wants_look():
            await self._connect(*at)
            self._at = at

    def _note(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._tell(trouble)
