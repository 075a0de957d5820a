"""Where gateways reach pods: address and port, as numbers. Gateways take no names there."""

import asyncio
import time

from indexer.engines.api import EngineApi
from indexer.engines.networks import EngineNetworks, literal
from indexer.engines.resolver import address_of
from indexer.engines.spec import host_of, port_of
from indexer.errors import SettingError

# A name's address is looked up again after this, in the background: the last one counts until then.
AGAIN_S = 5.0
# A name that has no address is looked up again after this.
RETRY_S = 1.0
# Above this number of names what is known is cleared: pods come and go.
NAMES_MAX = 16_384
_ANYWHERE = EngineNetworks.from_text("0.0.0.0/0,::/0")


class _Known:
    """What is known of one name. `due_s`: when it is looked up again, by the monotonic clock."""

    def __init__(self) -> None:
        self.destination: str | None = None
        self.due_s = 0.0
        self.looking: asyncio.Task[None] | None = None


class Destinations:
    """`networks`: where pods that a client registered may be."""

    def __init__(self, networks: EngineNetworks) -> None:
        self._networks = networks
        self._known: dict[EngineApi, _Known] = {}
        self._literal: dict[EngineApi, str | None] = {}

    async def of(self, api: EngineApi) -> str | None:
        """`address:port` of the API, an IPv6 address in brackets; None where its name has no address, or one outside of the networks."""
        if (found := self.known(api)) is None and (known := self._known.get(api)) is not None and known.looking is not None:
            await asyncio.shield(known.looking)
            return known.destination
        return found

    def known(self, api: EngineApi) -> str | None:
        """The same, as far as it is known; what is not is looked up for the next call."""
        # Each pick asks this, so addresses that need no look-up are read once.
        if api in self._literal:
            return self._literal[api]
        networks = self._networks if api.is_limited else _ANYWHERE
        address = literal(host_of(api.base) or "")
        if address is not None:
            if len(self._literal) >= NAMES_MAX:
                self._literal.clear()
            self._literal[api] = found = _netloc(api.base) if not api.is_limited or networks.admits(address) else None
            return found
        if api not in self._known and len(self._known) >= NAMES_MAX:
            self._known.clear()
        known = self._known.setdefault(api, _Known())
        if known.looking is None and time.monotonic() >= known.due_s:
            known.looking = asyncio.create_task(self._look_up(api, known, networks), name=f"address of {api.pod}")
        return known.destination

    async def _look_up(self, api: EngineApi, known: _Known, networks: EngineNetworks) -> None:
        try:
            known.destination = _netloc(await address_of(api.base, "http", networks))
        except SettingError:
            pass  # what was known counts on: a name server that is away makes no pod move
        finally:
            known.due_s = time.monotonic() + (RETRY_S if known.destination is None else AGAIN_S)
            known.looking = None


def _netloc(base: str) -> str:
    host = host_of(base) or ""
    return f"{f'[{host}]' if ':' in host else host}:{port_of(base)}"
