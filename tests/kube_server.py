"""A real API server of Kubernetes for tests: kube-apiserver with an etcd, without kubelets and controllers.

Both are named by TEST_KUBE_APISERVER and TEST_ETCD, or are on the PATH; `tests/build-kube-apiserver.sh` builds the first.
Nobody runs pods: their status is what the test says.
"""

import base64
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from tests.kube_admin import NAMESPACE, KubeAdmin
from tests.ports import free_port
from tests.tls import CERTIFICATE, DATA
from tests.waiting import wait_until

ADMIN = "admin"
TOKENS = ("t0", "t1")
KEY = DATA / "tls-key.pem"
_ROLES = "/apis/rbac.authorization.k8s.io/v1"
# Resources that the service reads, by their group.
_READ = {"": "pods", "discovery.k8s.io": "endpointslices", "inference.networking.k8s.io": "inferencepools"}


def program(name: str, variable: str) -> str:
    """Skips the test where it is not installed."""
    found = os.environ.get(variable) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed: put it on the PATH or name it in {variable}")
    return found


class KubeServer:
    """`with KubeServer() as server:` serves at `server.url`, where `server.token` may list and watch what the service reads."""

    def __init__(self) -> None:
        self._programs = program("etcd", "TEST_ETCD"), program("kube-apiserver", "TEST_KUBE_APISERVER")
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name)
        self._etcd_url = f"http://127.0.0.1:{free_port()}"
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.token = TOKENS[0]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._folder.cleanup)
            self._start_etcd()
            stack.callback(self._end, self._etcd)
            self._launch()
            stack.callback(self.kill)
            self._wait_until_ready()
            self.admin = stack.enter_context(KubeAdmin(self.url, ADMIN, str(CERTIFICATE)))
            self._prepare()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    # Its processes

    def _start_etcd(self) -> None:
        peers = f"http://127.0.0.1:{free_port()}"
        self._etcd = self._run(
            *(self._programs[0], f"--data-dir={self._path / 'etcd'}", "--unsafe-no-fsync", f"--listen-peer-urls={peers}"),
            *(f"--initial-advertise-peer-urls={peers}", f"--initial-cluster=default={peers}"),
            *(f"--listen-client-urls={self._etcd_url}", f"--advertise-client-urls={self._etcd_url}"),
        )
        wait_until(self._has_etcd, what="etcd")

    def start(self) -> None:
        """At the same port, with all that etcd knows."""
        self._launch()
        self._wait_until_ready()

    def _launch(self) -> None:
        tokens = self._path / "tokens.csv"
        tokens.write_text(f'{ADMIN},admin,admin,"system:masters"\n{self.token},engines,engines\n')
        self._api = self._run(
            *(self._programs[1], f"--etcd-servers={self._etcd_url}", "--bind-address=127.0.0.1", f"--secure-port={self.port}"),
            *(f"--tls-cert-file={CERTIFICATE}", f"--tls-private-key-file={KEY}", f"--cert-dir={self._path / 'certificates'}"),
            *("--authorization-mode=RBAC", f"--token-auth-file={tokens}", "--anonymous-auth=false", "--service-cluster-ip-range=10.0.0.0/24"),
            *(
                "--service-account-issuer=https://kubernetes",
                f"--service-account-signing-key-file={KEY}",
                f"--service-account-key-file={CERTIFICATE}",
            ),
            "--disable-admission-plugins=ServiceAccount",
        )

    def _wait_until_ready(self) -> None:
        wait_until(lambda: self._answers("/readyz", ADMIN) == 200, 120, what="an API server that is ready")

    def renew_token(self) -> None:
        """`token` is another one now, and the old one is not valid any more."""
        self.token = TOKENS[1 - TOKENS.index(self.token)]
        self.kill()
        self.start()

    def kill(self) -> None:
        self._end(self._api)

    def freeze(self) -> None:
        self._api.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._api.send_signal(signal.SIGCONT)

    def _run(self, *words: str) -> "subprocess.Popen[bytes]":
        with (self._path / f"{Path(words[0]).name}.log").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log)

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]") -> None:
        process.kill()
        process.wait(10)

    def _has_etcd(self) -> bool:
        assert self._etcd.poll() is None, "etcd ended"
        try:
            return httpx.get(f"{self._etcd_url}/health").is_success
        except httpx.TransportError:
            return False

    def _answers(self, path: str, token: str) -> int:
        """The status, 0 for no answer."""
        assert self._api.poll() is None, f"kube-apiserver ended: {(self._path / 'kube-apiserver.log').read_text()[-2_000:]}"
        try:
            response = httpx.get(self.url + path, headers={"Authorization": f"Bearer {token}"}, verify=False, timeout=5)  # noqa: S501
        except httpx.TransportError:
            return 0
        return response.status_code

    # What it holds

    def has_slices(self) -> bool:
        """Whether it serves EndpointSlices in the version that the service reads: from Kubernetes 1.21 on."""
        return self._answers("/apis/discovery.k8s.io/v1", ADMIN) == 200

    def _prepare(self) -> None:
        """The namespace, the kind of pools, and the rights of the service."""
        self.admin.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        spec = {
            "group": "inference.networking.k8s.io",
            "names": {"plural": "inferencepools", "singular": "inferencepool", "kind": "InferencePool", "listKind": "InferencePoolList"},
            "scope": "Namespaced",
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        }
        approved = {"api-approved.kubernetes.io": "unapproved, for tests"}
        metadata = {"name": "inferencepools.inference.networking.k8s.io", "annotations": approved}
        definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": metadata, "spec": spec}
        self.admin.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        wait_until(lambda: self._answers(self._pools, ADMIN) == 200, what="the kind of pools")
        self.admin.call("POST", f"{_ROLES}/namespaces/{NAMESPACE}/roles", {"metadata": {"name": "engines"}, "rules": _rules("list", "watch")})
        subject = {"kind": "User", "name": "engines", "apiGroup": "rbac.authorization.k8s.io"}
        role = {"kind": "Role", "name": "engines", "apiGroup": "rbac.authorization.k8s.io"}
        binding = {"metadata": {"name": "engines"}, "subjects": [subject], "roleRef": role}
        self.admin.call("POST", f"{_ROLES}/namespaces/{NAMESPACE}/rolebindings", binding)
        self.allow("list", "watch")

    @property
    def _pools(self) -> str:
        return f"/apis/inference.networking.k8s.io/v1/namespaces/{NAMESPACE}/inferencepools"

    def allow(self, *verbs: str) -> None:
        """The service may do this and nothing else."""
        self.admin.call("PATCH", f"{_ROLES}/namespaces/{NAMESPACE}/roles/engines", {"rules": _rules(*verbs)})
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?limit=1"
        for verb, query in (("list", ""), ("watch", "&watch=1&timeoutSeconds=1")):
            wait_until(partial(self._is_allowed, path + query, verb in verbs), what=f"the right to {verb}")

    def _is_allowed(self, path: str, expected: bool) -> bool:
        return self._answers(path, self.token) == (200 if expected else 403)

    def clear(self) -> None:
        """No pods and pools, and every right."""
        for kind in (f"/api/v1/namespaces/{NAMESPACE}/pods", self._pools):
            for each in self.admin.call("GET", kind)["items"]:
                self.admin.call("DELETE", f"{kind}/{each['metadata']['name']}", {"gracePeriodSeconds": 0})
        self.allow("list", "watch")

    # What happens behind its back

    def delete_behind_its_back(self, pod: str) -> None:
        self._call_etcd("deleterange", {"key": _base64(f"/registry/pods/{NAMESPACE}/{pod}")})

    def compact(self) -> None:
        """Forget what was before this moment. The server that is running keeps what it remembers."""
        self.admin.call("POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", {"metadata": {"generateName": "change-"}})
        revision = self._call_etcd("range", {"key": _base64("/registry")})["header"]["revision"]
        self._call_etcd("compaction", {"revision": revision, "physical": True})

    def _call_etcd(self, what: str, body: dict[str, object]) -> dict[str, Any]:
        response = httpx.post(f"{self._etcd_url}/v3/kv/{what}", json=body)
        assert response.is_success, response.text
        answer: dict[str, Any] = response.json()
        return answer


def _rules(*verbs: str) -> list[dict[str, list[str]]]:
    return [{"apiGroups": [group], "resources": [resource], "verbs": list(verbs)} for group, resource in _READ.items()]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
