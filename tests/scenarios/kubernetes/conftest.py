"""The API server of the scenarios: the stand-in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kube_admin import KubeAdmin
from tests.kube_stand_in import StandIn
from tests.tls import CERTIFICATE


class Cluster:
    """What scenarios need of an API server: an administrator, and the flags that let the service read it."""

    def __init__(self, api: StandIn, admin: KubeAdmin, token_file: Path) -> None:
        self.api = api
        self.admin = admin
        self.token_file = token_file
        self.flags = {"kube_api": api.url, "kube_token_file": str(token_file), "kube_ca_file": str(CERTIFICATE)}

    def renew_token(self) -> None:
        """The old token is not valid any more. The file gets the new one."""
        self.api.tokens = {"t1", self.api.admin}
        self.token_file.write_text("t1\n")

    def kill(self) -> None:
        """The server is gone, with every connection."""
        self.api.__exit__(None, None, None)

    def start(self) -> None:
        """It is back at the same port, with all that it knew."""
        self.api.__enter__()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    token_file = tmp_path / "token"
    token_file.write_text("t0\n")
    with StandIn() as api, KubeAdmin(api.url, api.admin, str(CERTIFICATE)) as admin:
        yield Cluster(api, admin, token_file)
