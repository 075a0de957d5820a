"""The client library with nothing installed but httpx and msgspec, and without the service that the same wheel brings."""

import subprocess
import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from tests.engine import Engine, stored
from tests.running import ROOT, Running

ASK = """
import sys
from scorer_api.client import Client
with Client(sys.argv[1]) as client:
    answer = client.score("m", [1, 2, 3, 4, 5])
    pick = client.route("m", [1, 2, 3, 4, 5])
    print(answer.best, pick.pod, client.route_done(pick.id).known, len(client.pods()))
"""


def needed(*names: str) -> set[str]:
    """These distributions with all that they require."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop().replace("-", "_").lower()
        if name not in found:
            found.add(name)
            wanted = (Requirement(text) for text in requires(name) or ())
            left += [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def test_it_needs_httpx_and_msgspec_alone(tmp_path: Path) -> None:
    """In an interpreter that finds these, what they require, and the package `scorer_api`."""
    for name in needed("httpx", "msgspec"):
        spec = find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        path = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "scorer_api").symlink_to(ROOT / "scorer_api")
    with Engine() as engine, Running(engine.spec()) as service:
        engine.publish(stored([1], [1, 2, 3, 4]))
        service.wait_for(sequence=0)
        words = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{ASK}", service.url]
        asked = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (asked.stdout, asked.stderr) == ("pod pod True 1\n", "")
