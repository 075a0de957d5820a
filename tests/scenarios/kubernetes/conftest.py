"""The API server of the scenarios: the stand-in, and in `make test-kubernetes` a real one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.kube_admin import NAMESPACE, KubeAdmin
from tests.kube_server import KubeServer
from tests.kube_stand_in import StandIn
from tests.proxy import Proxy
from tests.tls import CERTIFICATE


class Cluster(Protocol):
    """What scenarios need of an API server: its address, an administrator, the flags that let the service read it, and faults."""

    url: str
    admin: KubeAdmin
    flags: dict[str, str]
    has_slices: bool

    def kill(self) -> None:
        """The server is gone, with every connection."""

    def start(self) -> None:
        """It is back at the same port, with all that it knew."""

    def freeze(self) -> None:
        """It accepts connections and says nothing."""

    def thaw(self) -> None: ...

    def cut(self) -> None:
        """Connections end in the midst of what they carry."""

    def expire(self) -> None:
        """No version from before this moment can be watched from."""

    def renew_token(self) -> None:
        """The old token is not valid any more. The file gets the new one."""

    def deny(self, verb: str) -> None:
        """The service may not do this with pods, or no longer."""

    def allow(self) -> None:
        """It may do everything again."""

    def delete_while_away(self, pod: str) -> None:
        """A pod is gone when a server that was killed comes back."""


class StandInCluster:
    def __init__(self, api: StandIn, admin: KubeAdmin, token_file: Path) -> None:
        self._api = api
        self.url = api.url
        self.admin = admin
        self._token_file = token_file
        self.flags = _flags(api.url, token_file)
        self.has_slices = True

    def kill(self) -> None:
        self._api.__exit__(None, None, None)

    def start(self) -> None:
        self._api.__enter__()

    def freeze(self) -> None:
        self._api.is_frozen = True

    def thaw(self) -> None:
        self._api.is_frozen = False

    def cut(self) -> None:
        self._api.cuts_events = True

    def expire(self) -> None:
        self._api.compact()

    def renew_token(self) -> None:
        self._api.tokens = {"t1", self._api.admin}
        self._token_file.write_text("t1\n")
        self.expire()

    def deny(self, verb: str) -> None:
        self._api.refused[verb, "pods"] = 403

    def allow(self) -> None:
        self._api.refused.clear()

    def delete_while_away(self, pod: str) -> None:
        del self._api.objects[f"/api/v1{NAMESPACE}", "pods"][pod]


class RealCluster:
    """The service reaches it through a proxy, which can cut its connections."""

    def __init__(self, server: KubeServer, proxy: Proxy, token_file: Path) -> None:
        self._server = server
        self._proxy = proxy
        self.url = f"https://127.0.0.1:{proxy.port}"
        self.admin = server.admin
        self._token_file = token_file
        self.flags = _flags(self.url, token_file)
        self.has_slices = server.has_slices()

    def kill(self) -> None:
        self._server.kill()

    def start(self) -> None:
        self._server.start()

    def freeze(self) -> None:
        self._server.freeze()

    def thaw(self) -> None:
        self._server.thaw()

    def cut(self) -> None:
        self._proxy.cut()

    def expire(self) -> None:
        """A server that starts anew remembers no older versions than etcd has."""
        self._server.compact()
        self._server.kill()
        self._server.start()

    def renew_token(self) -> None:
        self._server.renew_token()
        self._token_file.write_text(f"{self._server.token}\n")

    def deny(self, verb: str) -> None:
        self._server.allow("watch" if verb == "list" else "list")

    def allow(self) -> None:
        self._server.allow("list", "watch")

    def delete_while_away(self, pod: str) -> None:
        self._server.delete_behind_its_back(pod)


def _flags(url: str, token_file: Path) -> dict[str, str]:
    return {"kube_api": url, "kube_token_file": str(token_file), "kube_ca_file": str(CERTIFICATE)}


@pytest.fixture(scope="session")
def kube_server() -> Iterator[KubeServer]:
    with KubeServer() as server:
        yield server


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.kubernetes)])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    token_file = tmp_path / "token"
    if request.param == "stand-in":
        token_file.write_text("t0\n")
        with StandIn() as api, KubeAdmin(api.url, api.admin, str(CERTIFICATE)) as admin:
            yield StandInCluster(api, admin, token_file)
    else:
        server: KubeServer = request.getfixturevalue("kube_server")
        server.clear()
        token_file.write_text(f"{server.token}\n")
        with Proxy(server.port) as proxy:
            yield RealCluster(server, proxy, token_file)
