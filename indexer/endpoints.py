"""Whether an engine's endpoints can be connected to, as far as that can be told without connecting."""

import zmq

from indexer.engine_spec import EngineSpec
from indexer.errors import SettingError
from indexer.subscription import Context


def check_endpoints(spec: EngineSpec, context: Context | None = None) -> None:
    """Raises SettingError that names the endpoint and what is wrong with it."""
    if context is None:
        with zmq.Context() as own:
            check_endpoints(spec, own)
        return
    for key, endpoint in (("events", spec.events), ("replay", spec.replay)):
        if endpoint is None:
            continue
        try:
            with context.socket(zmq.SUB) as probe:
                probe.linger = 0
                probe.connect(endpoint)
        except zmq.ZMQError as error:
            raise SettingError(key, endpoint, f"should be an endpoint that can be connected to: {error.strerror}") from None
