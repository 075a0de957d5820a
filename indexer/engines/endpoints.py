"""Checks of an engine's endpoints."""

import re

from indexer.engines.networks import EngineNetworks, sockets_of
from indexer.engines.spec import EngineSpec
from indexer.errors import SettingError
from indexer.receiving.addresses import addresses_of, has_name, host_and_port

PORT_MAX = 65_535
_NAME = re.compile(r"[\w.-]+")


def check_registration(spec: EngineSpec, networks: EngineNetworks) -> None:
    """Check a spec that came over HTTP. Raises SettingError also for an endpoint outside of the networks."""
    networks.check(spec)
    check_endpoints(spec)


def check_endpoints(spec: EngineSpec) -> None:
    """Raises SettingError that names the endpoint and what is wrong with it. No name is looked up."""
    for key, endpoint in sockets_of(spec):
        try:
            if not has_name(endpoint):
                addresses_of(endpoint)
        except OSError as error:
            raise SettingError(key, endpoint, f"should be an endpoint that can be connected to: {error.strerror}") from None
        found = host_and_port(endpoint)
        if found is not None and has_name(endpoint) and _NAME.fullmatch(found[0]) is None:
            raise SettingError(key, endpoint, f"should have the name or the address of a host, which {found[0]} is not")
        if found is not None and not 0 < found[1] <= PORT_MAX:
            raise SettingError(key, endpoint, f"should have a port between 1 and {PORT_MAX}")
