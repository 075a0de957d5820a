"""Where a pod's own API is, and how to dial it without being led elsewhere."""

from msgspec import Struct

from indexer.engines.networks import EngineNetworks, literal
from indexer.engines.resolver import address_of
from indexer.engines.spec import host_of, is_http_base
from indexer.errors import SettingError


class EngineApi(Struct, frozen=True):
    """`base`: what its paths are appended to. `is_limited`: somebody other than the operator said where it is."""

    pod: str
    base: str
    is_limited: bool


class Route(Struct, frozen=True):
    """`url`: what to dial. `host`: for the header of that name, and `server_name` for TLS, where the URL has an address in place of the name."""

    url: str
    host: str | None = None
    server_name: str | None = None


async def route_to(api: EngineApi, path: str, networks: EngineNetworks) -> Route:
    """Where `path` of the API is at present. What is limited is dialled at an address that was looked at, never by its name.

    Raises SettingError where there is no such address.
    """
    base = api.base.rstrip("/")
    if not is_http_base(base):
        raise SettingError("http", base, f"{base} is no API's base; say http=http://host:port in the pod's spec")
    host = host_of(base)
    assert host is not None, "an API's base has a host"
    if not api.is_limited:
        return Route(base + path)
    if (address := literal(host)) is not None:
        networks.check_address(address, "http", base)
        return Route(base + path)
    at = await address_of(base, "http", networks)
    named = base.partition("://")[2].partition("/")[0]
    return Route(at + path, named, host)
