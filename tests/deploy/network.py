"""Who reaches whom under a set of network policies, by the rules of Kubernetes: a pod that no policy chooses for a direction is open in it; one that
some choose is open to what any of them allows. A connection needs both its ends to allow it."""

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from tests.deploy.manifests import Document


class Pod(Struct, frozen=True):
    """Labels of a pod and of its namespace. `kubernetes.io/metadata.name` is the namespace's name."""

    labels: dict[str, str]
    namespace: dict[str, str]

    @property
    def namespace_name(self) -> str:
        return self.namespace["kubernetes.io/metadata.name"]


def pod(namespace: str, labels: dict[str, str] | None = None, **more: str) -> Pod:
    return Pod(labels or {}, {"kubernetes.io/metadata.name": namespace, **more})


def reaches(policies: Iterable[Document], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    policies = list(policies)
    return _allows(policies, "Egress", source, target, port, protocol) and _allows(policies, "Ingress", target, source, port, protocol)


def _allows(policies: list[Document], direction: str, end: Pod, other: Pod, port: int, protocol: str) -> bool:
    choosing = [policy for policy in policies if direction in policy["spec"]["policyTypes"] and _chooses(policy, end)]
    if not choosing:
        return True
    key, peer = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    rules = [(policy, rule) for policy in choosing for rule in policy["spec"].get(key, [])]
    return any(_is_peer(policy, rule.get(peer), other) and _is_port(rule.get("ports"), port, protocol) for policy, rule in rules)


def _chooses(policy: Document, end: Pod) -> bool:
    return policy["metadata"]["namespace"] == end.namespace_name and _matches(policy["spec"]["podSelector"], end.labels)


def _is_peer(policy: Document, peers: list[dict[str, Any]] | None, other: Pod) -> bool:
    if peers is None:
        return True
    for peer in peers:
        if "ipBlock" in peer:
            continue
        is_near = policy["metadata"]["namespace"] == other.namespace_name
        is_in = _matches(peer["namespaceSelector"], other.namespace) if "namespaceSelector" in peer else is_near
        if is_in and _matches(peer.get("podSelector", {}), other.labels):
            return True
    return False


def _is_port(ports: list[dict[str, Any]] | None, port: int, protocol: str) -> bool:
    return ports is None or any(each["protocol"] == protocol and each["port"] <= port <= each.get("endPort", each["port"]) for each in ports)


def _matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In", "no other is used here"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True
