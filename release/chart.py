"""The Helm chart as a package: the layout that `helm package` makes, the same bytes each time."""

import gzip
import io
import tarfile
from pathlib import Path

CHART = "deploy/helm/kv-indexer"
# What .helmignore says.
LEFT_OUT = {".helmignore", ".git"}
LEFT_OUT_SUFFIXES = {".tgz", ".swp"}


def package(root: Path, version: str, folder: Path, at_s: int) -> Path:
    """Write `kv-indexer-VERSION.tgz` into the folder. `at_s`: the time stamp of all files, so that the same tree makes the same bytes."""
    chart = root / CHART
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in files(chart):
            info = tarfile.TarInfo(f"{chart.name}/{path.relative_to(chart).as_posix()}")
            data = path.read_bytes()
            info.size, info.mtime, info.mode = len(data), at_s, 0o644
            archive.addfile(info, io.BytesIO(data))
    target = folder / f"{chart.name}-{version}.tgz"
    target.write_bytes(gzip.compress(content.getvalue(), mtime=at_s))
    return target


def files(chart: Path) -> list[Path]:
    """What belongs into the package. Chart.yaml comes first, as Helm has it."""
    found = [path for path in chart.rglob("*") if path.is_file() and path.name not in LEFT_OUT and path.suffix not in LEFT_OUT_SUFFIXES]
    return sorted(found, key=lambda path: (path != chart / "Chart.yaml", path.relative_to(chart).as_posix()))
