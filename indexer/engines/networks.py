"""The networks where pods that are registered over HTTP may be. A registration makes the service dial out, so clients cannot choose any address.

Engines that a flag, a variable or the configuration file names are not limited.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self, TypeAlias

from msgspec import Struct

from indexer.engines.spec import AT_REPLAY, EngineSpec, host_of
from indexer.errors import SettingError

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# Private and loopback ranges. Not link-local ones, nor 100.64.0.0/10, which carriers share: clouds have their metadata services there.
DEFAULT_NETWORKS = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,127.0.0.0/8,::1/128,fc00::/7"
IPC = "ipc"
# Where clouds give a machine its secrets, and their other services beside that. A network admits such an address only if it consists of that address
# alone. AWS: metadata, credentials of containers (ECS, EKS), time, names. Azure: metadata, the host. Then Alibaba, Oracle, GCP.
METADATA = frozenset(
    map(
        ip_address,
        (
            *("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.169.123", "169.254.169.253"),
            *("fd00:ec2::254", "fd00:ec2::23", "fd00:ec2::123", "fd00:ec2::240", "fd00:ec2::253"),
            *("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:c1::a9fe:a9fe", "fd20:ce::254"),
        ),
    )
)


class EngineNetworks(Struct, frozen=True):
    """`networks`: where engines may be. `allows_ipc`: whether they may also be at ipc://, in any file of this machine."""

    networks: tuple[Network, ...]
    allows_ipc: bool

    @classmethod
    def from_text(cls, text: str, source: str = "--allowed-engine-networks") -> Self:
        """Parse `10.0.0.0/8,fd00::/8,ipc`. Raises SettingError."""
        words = [word.strip() for word in text.split(",") if word.strip()]
        try:
            return cls(tuple(ip_network(word) for word in words if word != IPC), IPC in words)
        except ValueError as error:
            raise SettingError(source, text, f"should be networks like 10.0.0.0/8 or fd00::/8, or ipc, separated by commas: {error}") from None

    def admits(self, address: Address) -> bool:
        """Whether an engine may be at this address."""
        if isinstance(address, IPv6Address):
            # A zone does not make it another address.
            address = address.ipv4_mapped or IPv6Address(int(address))
        return any(address in network and (address not in METADATA or network.num_addresses == 1) for network in self.networks)

    def check_address(self, address: Address, key: str, endpoint: str) -> None:
        """Raises SettingError that names the address and what is allowed."""
        if not self.admits(address):
            found = "" if str(address) == host_of(endpoint) else f" is at {address}, which"
            raise SettingError(key, endpoint, f"{endpoint}{found} is outside the networks where engines may be: {self}")

    def check(self, spec: EngineSpec) -> None:
        """Check all endpoints, as far as possible without resolving names. Raises SettingError."""
        for key, endpoint in endpoints_of(spec):
            host = host_of(endpoint)
            if host is None and not self.allows_ipc:
                raise SettingError(key, endpoint, f"{endpoint} is outside the networks where engines may be: {self}")
            if host is not None and (address := literal(host)) is not None:
                self.check_address(address, key, endpoint)

    def __str__(self) -> str:
        words = [str(network) for network in self.networks] + [IPC] * self.allows_ipc
        return f"{', '.join(words) or 'none'} (--allowed-engine-networks)"


def sockets_of(spec: EngineSpec) -> list[tuple[str, str]]:
    """(key, endpoint) of the spec's events, replay and snapshot endpoints; rank r is at port + r."""
    snapshot = None if spec.snapshot == AT_REPLAY else spec.snapshot
    return [(key, endpoint) for key, endpoint in (("events", spec.events), ("replay", spec.replay), ("snapshot", snapshot)) if endpoint is not None]


def endpoints_of(spec: EngineSpec) -> list[tuple[str, str]]:
    """The same with the base URL of its API, if the spec has one."""
    return sockets_of(spec) + ([] if spec.http is None else [("http", spec.http)])


def literal(host: str) -> Address | None:
    """The address if the host is written as one, None for a name."""
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def has_name(endpoint: str | None) -> bool:
    """Whether the endpoint's host is a name that has to be resolved."""
    host = None if endpoint is None else host_of(endpoint)
    return host is not None and literal(host) is None
