"""Checks that libzmq accepts an engine's endpoints."""

import zmq

from indexer.engines.networks import EngineNetworks, sockets_of
from indexer.engines.spec import EngineSpec, host_of
from indexer.errors import SettingError
from indexer.receiving.address_family import is_ipv6
from indexer.receiving.subscription import Context


def check_registration(spec: EngineSpec, networks: EngineNetworks, context: Context | None = None) -> None:
    """Check a spec that came over HTTP. Raises SettingError also for an endpoint outside of the networks."""
    networks.check(spec)
    # Trying a tcp endpoint would dial it, by a name that is not resolved and checked yet.
    check_endpoints(spec, context, dials_tcp=False)


def check_endpoints(spec: EngineSpec, context: Context | None = None, *, dials_tcp: bool = True) -> None:
    """Raises SettingError that names the endpoint and what is wrong with it."""
    if context is None:
        with zmq.Context() as own:
            check_endpoints(spec, own, dials_tcp=dials_tcp)
        return
    for key, endpoint in sockets_of(spec):
        if host_of(endpoint) is not None and not dials_tcp:
            continue
        try:
            with context.socket(zmq.SUB) as probe:
                probe.linger = 0
                probe.ipv6 = is_ipv6(endpoint)
                probe.connect(endpoint)
        except zmq.ZMQError as error:
            raise SettingError(key, endpoint, f"should be an endpoint that can be connected to: {error.strerror}") from None
