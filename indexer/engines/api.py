"""Where a pod's own HTTP API is, which address of it may be dialled, and which requests are for it."""

from msgspec import Struct

from indexer.engines.http_client import Target
from indexer.engines.networks import EngineNetworks, literal
from indexer.engines.resolver import address_of
from indexer.engines.spec import Role, host_of, is_http_base
from indexer.errors import SettingError


class EngineApi(Struct, frozen=True):
    """`base`: the URL that paths are appended to. `is_limited`: whether a client, not the operator, set it, so that networks are checked.

    `role`: see `EngineSpec`.
    """

    pod: str
    base: str
    is_limited: bool
    role: Role = "both"


async def target_of(api: EngineApi, path: str, networks: EngineNetworks) -> Target:
    """What to dial for a path of the API. A limited API is dialled at an address that was checked, never by its name.

    Raises SettingError if there is no such address.
    """
    base = api.base.rstrip("/")
    if not is_http_base(base):
        raise SettingError("http", base, f"{base} is no API's base; say http=http://host:port in the pod's spec")
    host = host_of(base)
    assert host is not None, "an API's base has a host"
    if not api.is_limited:
        return Target(base + path)
    if (address := literal(host)) is not None:
        networks.check_address(address, "http", base)
        return Target(base + path)
    at = await address_of(base, "http", networks)
    netloc = base.partition("://")[2].partition("/")[0]
    return Target(at + path, netloc, host)
