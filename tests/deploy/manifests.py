"""What is deployed, as data: the compose file, the Kubernetes manifests as they are written, and as kustomize and Helm make them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.running import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CHART = DEPLOY / "helm/kv-indexer"
OVERLAYS = ("overlays/shared", "overlays/external-redis", "overlays/gateway-api", "overlays/sidecar", "engines")
TOOLS = Path(sys.executable).parent
TOOL_S = 60.0

Document = dict[str, Any]


def load(path: Path) -> Document:
    """A YAML file of one document."""
    (document,) = load_all(path.read_text(encoding="utf-8"))
    return document


def load_all(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


def compose() -> Document:
    return load(DEPLOY / "compose.yaml")


def written() -> list[tuple[Path, Document]]:
    """Every document under kubernetes/ but the lists of operations that are JSON patches, with its file."""
    found = [(path, document) for path in sorted(KUBERNETES.rglob("*.yaml")) for document in load_all(path.read_text(encoding="utf-8"))]
    return [(path, document) for path, document in found if isinstance(document, dict)]


def tool(name: str, *words: str) -> str:
    """The output of a tool of the deploy extra. Fails with what it says."""
    ran = subprocess.run([str(TOOLS / name), *words], capture_output=True, text=True, timeout=TOOL_S, check=False)
    assert ran.returncode == 0, f"{name} {' '.join(words)}: {ran.stdout}{ran.stderr}"
    return ran.stdout


def kustomized(overlay: str) -> list[Document]:
    return load_all(tool("kubectl", "kustomize", str(KUBERNETES / overlay)))


def templated(values: Document | None = None, release: str = "kv-indexer") -> list[Document]:
    """What Helm makes of the chart. Raises helm_python.HelmError."""
    from helm_python import Chart  # of the deploy extra

    with Chart.load(CHART) as chart:
        files = chart.render(values=values, name=release, namespace="kv-indexer")
    return [document for name, text in files.items() if name.endswith(".yaml") for document in load_all(text)]


class Container(NamedTuple):
    """A container of a pod, and the pod's spec."""

    name: str
    spec: Document
    pod: Document

    @property
    def is_ours(self) -> bool:
        # A patch of one names no image.
        return str(self.spec.get("image", "")).rpartition("/")[2].partition(":")[0] == "kv-indexer"

    @property
    def variables(self) -> dict[str, str]:
        """The values that are said here; a secret's is not."""
        return {entry["name"]: entry["value"] for entry in self.spec.get("env", []) if "value" in entry}

    @property
    def secret_variables(self) -> set[str]:
        return {entry["name"] for entry in self.spec.get("env", []) if "secretKeyRef" in entry.get("valueFrom", {})}


def containers(documents: list[Document]) -> Iterator[Container]:
    """Those of every Deployment and StatefulSet, sidecars included."""
    for document in documents:
        if document["kind"] in ("Deployment", "StatefulSet"):
            pod = document["spec"]["template"]["spec"]
            for spec in [*pod.get("initContainers", []), *pod.get("containers", [])]:
                yield Container(f"{document['metadata']['name']}/{spec['name']}", spec, pod)


def named(documents: list[Document], kind: str) -> dict[str, Document]:
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def copy(document: Document) -> Document:
    copied: Document = json.loads(json.dumps(document))
    return copied
