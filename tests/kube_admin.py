"""Makes and changes objects in an API server, a real one or the stand-in, as controllers and kubelets would."""

import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

Object = dict[str, Any]
NAMESPACE = "inference"
_POOLS = "/apis/inference.networking.k8s.io/v1"
_SLICES = "/apis/discovery.k8s.io/v1"


class KubeAdmin:
    """`with KubeAdmin(url, token, ca_file) as admin:` with every right."""

    def __init__(self, url: str, token: str, ca_file: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, verify=_context(ca_file), trust_env=False, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def call(self, method: str, path: str, body: object = None, *, patch: str = "merge-patch") -> Object:
        media_type = f"application/{patch}+json" if method == "PATCH" else "application/json"
        response = self._http.request(method, path, json=body, headers={"Content-Type": media_type})
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        content: Object = response.json()
        return content

    # Pods

    def create_pod(
        self,
        name: str,
        ip: str | None = "127.0.0.1",
        *,
        ready: bool = True,
        labels: Mapping[str, str] = {"app": "vllm"},
        ports: Mapping[str, int] | None = None,
        **annotations: object,
    ) -> Object:
        """A pod on a node. `annotations`: ours, `events_port=5557` for kv-indexer/events-port. `ports`: of its container, by name."""
        container = {"name": "engine", "image": "vllm", "ports": [{"name": key, "containerPort": port} for key, port in (ports or {}).items()]}
        metadata = {
            "name": name,
            "namespace": NAMESPACE,
            "labels": dict(labels),
            "annotations": {f"kv-indexer/{key.replace('_', '-')}": str(value) for key, value in annotations.items()},
        }
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "node", "containers": [container]}}
        self.call("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", pod)
        return self.set_status(name, ip, ready=ready)

    def set_status(self, name: str, ip: str | None = "127.0.0.1", *, ready: bool = True, phase: str = "Running") -> Object:
        """What a kubelet says of it."""
        conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": None, "lastProbeTime": None}]
        status: Object = {"phase": phase if ip else "Pending", "conditions": conditions}
        if ip:
            status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
        return self.call("PATCH", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/status", {"status": status})

    def patch_pod(self, name: str, metadata: Object) -> Object:
        return self.call("PATCH", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}", {"metadata": metadata})

    def delete_pod(self, name: str, *, grace_s: int = 0) -> Object:
        return self.call("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods/{name}", {"gracePeriodSeconds": grace_s})

    # Pools and slices

    def create_pool(self, name: str, selector: Mapping[str, str], *ports: int) -> Object:
        spec = {"selector": {"matchLabels": dict(selector)}, "targetPorts": [{"number": port} for port in ports]}
        spec |= {"endpointPickerRef": {"name": "picker", "port": {"number": 9002}}}
        pool = {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": name}, "spec": spec}
        return self.call("POST", f"{_POOLS}/namespaces/{NAMESPACE}/inferencepools", pool)

    def patch_pool(self, name: str, spec: Object) -> Object:
        return self.call("PATCH", f"{_POOLS}/namespaces/{NAMESPACE}/inferencepools/{name}", {"spec": spec})

    def delete_pool(self, name: str) -> Object:
        return self.call("DELETE", f"{_POOLS}/namespaces/{NAMESPACE}/inferencepools/{name}")

    def create_slice(self, name: str, service: str, port: int, *endpoints: Object) -> Object:
        metadata = {"name": name, "labels": {"kubernetes.io/service-name": service}}
        each = {"metadata": metadata, "addressType": "IPv4", "endpoints": list(endpoints), "ports": [{"name": "http", "port": port}]}
        each |= {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"}
        return self.call("POST", f"{_SLICES}/namespaces/{NAMESPACE}/endpointslices", each)

    def patch_slice(self, name: str, content: Object) -> Object:
        return self.call("PATCH", f"{_SLICES}/namespaces/{NAMESPACE}/endpointslices/{name}", content)


def _context(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)
