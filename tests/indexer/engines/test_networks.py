"""Where pods that are registered over HTTP may be."""

from ipaddress import ip_address

import pytest

from indexer.engines.networks import DEFAULT_NETWORKS, EngineNetworks, has_name
from indexer.engines.spec import EngineSpec
from indexer.errors import SettingError

DEFAULT = EngineNetworks.from_text(DEFAULT_NETWORKS)


@pytest.mark.rule("C9")
@pytest.mark.parametrize(
    ("address", "is_in"),
    [
        ("10.0.0.0", True),
        ("10.255.255.255", True),
        ("11.0.0.0", False),
        ("172.15.255.255", False),
        ("172.16.0.1", True),
        ("172.31.255.255", True),
        ("172.32.0.0", False),
        ("192.168.1.1", True),
        ("192.169.0.0", False),
        ("127.0.0.1", True),
        ("0.0.0.0", False),  # noqa: S104 - nothing binds it
        ("8.8.8.8", False),
        ("100.64.0.1", False),
        ("169.254.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", True),
        ("::", False),
        ("fc00::1", True),
        ("fdff::1", True),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("fd00:ec2::254%1", False),
        ("fd00:ec2::23", False),
        ("fd00:ec2::123", False),
        ("fd00:ec2::253", False),
        ("fd00:ec2::255", True),
        ("fd00:c1::a9fe:a9fe", False),
        ("fd20:ce::254", False),
        ("2001:db8::1", False),
        ("::ffff:10.0.0.1", True),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a00:1", False),
    ],
)
def test_by_default_private_and_loopback_addresses_are_in(address: str, is_in: bool) -> None:
    assert DEFAULT.admits(ip_address(address)) is is_in


@pytest.mark.rule("C9")
def test_a_metadata_service_is_in_only_where_it_alone_is_named() -> None:
    address = ip_address("169.254.169.254")
    assert not EngineNetworks.from_text("0.0.0.0/0,169.254.0.0/16").admits(address)
    assert EngineNetworks.from_text("169.254.169.254").admits(address)
    assert EngineNetworks.from_text("0.0.0.0/0,169.254.0.0/16").admits(ip_address("169.254.169.252"))


@pytest.mark.parametrize("text", ["", " ", ","])
def test_none_may_be_allowed(text: str) -> None:
    networks = EngineNetworks.from_text(text)
    assert (networks.networks, networks.allows_ipc) == ((), False)
    assert str(networks) == "none (--allowed-engine-networks)"


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "everywhere", "IPC", "ipc://x", "10.0.0.0/8;ipc"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(SettingError, match=r"--allowed-engine-networks=.*should be networks like 10\.0\.0\.0/8"):
        EngineNetworks.from_text(text)


@pytest.mark.rule("C9")
@pytest.mark.parametrize("key", ["events", "replay"])
@pytest.mark.parametrize("endpoint", ["tcp://8.8.8.8:5557", "tcp://[2001:db8::1]:5557", "tcp://[::ffff:8.8.8.8]:5557", "ipc:///run/engine"])
def test_an_endpoint_outside_is_named_with_what_is_allowed(key: str, endpoint: str) -> None:
    with pytest.raises(SettingError) as raised:
        DEFAULT.check(EngineSpec("p", "m", **{"events": "tcp://10.0.0.1:1", key: endpoint}))
    assert raised.value.key == key
    assert [word for word in (endpoint, "10.0.0.0/8", "fc00::/7", "--allowed-engine-networks") if word not in raised.value.allowed] == []


@pytest.mark.rule("C9")
@pytest.mark.parametrize("http", ["http://8.8.8.8", "https://8.8.8.8:8000/v1", "http://[2001:db8::1]:80", "http://169.254.169.254/latest/meta-data"])
def test_so_is_an_api_outside(http: str) -> None:
    with pytest.raises(SettingError) as raised:
        DEFAULT.check(EngineSpec("p", "m", events="tcp://10.0.0.1:1", http=http))
    assert raised.value.key == "http"
    assert f"{http} is outside the networks where engines may be: 10.0.0.0/8" in raised.value.allowed
    DEFAULT.check(EngineSpec("p", "m", events="tcp://10.0.0.1:1", http="http://10.0.0.1:8000"))


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        ("tcp://h:1", True),
        ("tcp://10.1:1", True),
        ("tcp://167772161:1", True),
        ("tcp://010.0.0.1:1", True),
        ("tcp://10.0.0.1:1", False),
        ("tcp://[::1]:1", False),
        ("tcp://[fd00::1%eth0]:1", False),
        ("ipc://h", False),
        ("http://h:8000", True),
        ("http://10.0.0.1:8000", False),
        (None, False),
    ],
)
def test_whatever_is_not_written_as_an_address_is_a_name(endpoint: str | None, named: bool) -> None:
    assert has_name(endpoint) is named
