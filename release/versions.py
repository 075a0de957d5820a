"""The version: `version` in pyproject.toml is the one that counts, and the files of PLACES repeat it."""

import re
import tomllib
from pathlib import Path

from msgspec import Struct

from release.errors import ReleaseError

VERSION = re.compile(r"\d+\.\d+\.\d+")


class Place(Struct, frozen=True):
    """Where in a file the version stands: what `pattern` matches between its two groups."""

    path: str
    pattern: str


PYPROJECT = Place("pyproject.toml", r'^(version = ")[^"]+(")$')
PLACES = (
    PYPROJECT,
    Place("deploy/helm/kv-indexer/Chart.yaml", r"^((?:version|appVersion): )\S+()$"),
    Place("deploy/Dockerfile", r"(-t kv-indexer:)\S+( )"),
    Place("deploy/Dockerfile", r'(org\.opencontainers\.image\.version=")[^"]+(")'),
    Place("deploy/compose.yaml", r"^( +image: kv-indexer:)\S+()$"),
    Place("deploy/kubernetes/overlays/external-redis/kustomization.yaml", r"^( +newTag: )\S+()$"),
    Place("deploy/kubernetes/overlays/gateway-api/kustomization.yaml", r"^( +newTag: )\S+()$"),
    Place("deploy/kubernetes/overlays/shared/kustomization.yaml", r"^( +newTag: )\S+()$"),
    Place("deploy/kubernetes/overlays/sidecar/kustomization.yaml", r"^( +newTag: )\S+()$"),
    Place("docs/how-to/kubernetes.md", r"(kv-indexer:)\d[\w.]+()"),
)


def current(root: Path) -> str:
    version: str = tomllib.loads((root / PYPROJECT.path).read_text())["project"]["version"]
    return version


def set_everywhere(root: Path, version: str) -> None:
    """Write this version into every place. Raises ReleaseError for what is no version, and for a place that is gone."""
    if VERSION.fullmatch(version) is None:
        raise ReleaseError(f"{version!r} should be a version like 1.2.3")
    for place in PLACES:
        path = root / place.path
        text, count = re.subn(place.pattern, rf"\g<1>{version}\g<2>", path.read_text(), flags=re.MULTILINE)
        if count == 0:
            raise ReleaseError(f"{place.path} has no version any more where {place.pattern} looks for it")
        path.write_text(text)


def differing(root: Path) -> list[str]:
    """What says another version than pyproject.toml, each as a sentence."""
    version = current(root)
    found = []
    for place in PLACES:
        for match in re.finditer(place.pattern, (root / place.path).read_text(), re.MULTILINE):
            said = match[0][len(match[1]) : len(match[0]) - len(match[2])]
            if said != version:
                found.append(f"{place.path} says {said}, pyproject.toml {version}")
    return found
