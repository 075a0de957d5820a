"""An engine's endpoint that a source found, and the spec that it makes once its model is known. Pure."""

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

from msgspec import Struct

from indexer.discovery.source_spec import EngineOptions
from indexer.engines.discovered import DiscoveredPod
from indexer.engines.spec import EngineSpec

EVENTS_PORT = 5557
REPLAY_PORT = 5558
HTTP_PORT = 8000


class FoundEngine(Struct, frozen=True, kw_only=True):
    """`address`, `port`: of its API; `address:port` is the pod's name. `rank`: which of several engines here it is, None where it is alone.

    `uid`, `name`, `is_ready`: see `DiscoveredPod`. `is_leaving`: its address may soon be another's. `created`: sorts like the time.
    """

    address: str
    port: int
    source: str
    uid: str = ""
    name: str = ""
    is_ready: bool = True
    is_leaving: bool = False
    created: str = ""
    rank: int | None = None
    options: EngineOptions = EngineOptions()

    @property
    def pod(self) -> str:
        return f"{self._host}:{self.port}"

    @property
    def _host(self) -> str:
        return f"[{self.address}]" if isinstance(ip_address(self.address), IPv6Address) else self.address

    def discovered(self, model: str) -> DiscoveredPod:
        """With its spec. Raises SettingError where its ports make no spec."""
        options, shift = self.options, self.rank or 0
        events = (options.events_port or EVENTS_PORT) + shift
        spec = {
            "pod": self.pod,
            "model": model,
            "events": f"tcp://{self._host}:{events}",
            "replay": None if (replay := self._replay_port()) is None else f"tcp://{self._host}:{replay + shift}",
            "rank": self.rank,
            "ranks": None if self.rank is not None else options.ranks,
            "topic": options.topic or "",
            "counting": options.counting or "copies",
            "role": options.role or "both",
        }
        source = f"the engine {self.name or self.pod} that {self.source} found"
        return DiscoveredPod((EngineSpec.from_mapping(spec, source, self.pod),), self.uid, self.name, self.source, self.is_ready)

    def _replay_port(self) -> int | None:
        """By default the port behind that of the events, unless the second rank publishes there."""
        if self.options.replay_port is not None:
            return None if self.options.replay_port == "none" else self.options.replay_port
        has_several = self.rank is not None or (self.options.ranks or 1) > 1
        return None if has_several else (self.options.events_port or EVENTS_PORT) + 1


def by_pod(engines: Iterable[FoundEngine]) -> dict[str, FoundEngine]:
    """One engine for each pod's name. An address is given out again within seconds: the one that stays and is newer counts."""
    found: dict[str, FoundEngine] = {}
    for engine in engines:
        known = found.get(engine.pod)
        if known is None or _order(known) < _order(engine):
            found[engine.pod] = engine
    return found


def _order(engine: FoundEngine) -> tuple[bool, bool, str]:
    return not engine.is_leaving, engine.is_ready, engine.created
