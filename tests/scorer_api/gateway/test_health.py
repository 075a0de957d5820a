"""The health of a picker."""

import pytest

from scorer_api.gateway.health import NAMES, health_of, read_check
from scorer_api.rpc.protobuf import MalformedError


@pytest.mark.parametrize("name", NAMES)
def test_every_name_in_use_is_known_and_only_liveness_outlasts_draining(name: str) -> None:
    assert health_of(name, is_serving=True) == b"\x08\x01"
    assert health_of(name, is_serving=False) == (b"\x08\x01" if name == "liveness" else b"\x08\x02")


def test_any_other_name_is_unknown() -> None:
    assert health_of("envoy.service.auth.v3.Authorization", is_serving=True) == b"\x08\x03"


@pytest.mark.parametrize(("data", "name"), [(b"", ""), (b"\x0a\x08liveness", "liveness"), (b"\x12\x01x", "")])
def test_a_check_says_which_name(data: bytes, name: str) -> None:
    assert read_check(data) == name


def test_a_check_that_is_none_is_refused() -> None:
    with pytest.raises(MalformedError):
        read_check(b"\x0a\x09liveness")
