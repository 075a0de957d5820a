"""deploy/Dockerfile with its base images pinned by digest, which only a registry can tell."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from release.errors import ReleaseError

DOCKERFILE = "deploy/Dockerfile"
BASE = re.compile(r"^(ARG \w+_IMAGE=)(\S+)$", re.MULTILINE)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
ASK_S = 120


def pinned(text: str, digest_of: Callable[[str], str]) -> str:
    """The Dockerfile with each base as NAME@DIGEST. Raises ReleaseError for what is no digest."""

    def pin(found: re.Match[str]) -> str:
        digest = digest_of(found[2])
        if DIGEST.fullmatch(digest) is None:
            raise ReleaseError(f"{digest!r} of {found[2]} is no digest")
        return f"{found[1]}{found[2]}@{digest}"

    text, count = BASE.subn(pin, text)
    if count == 0:
        raise ReleaseError(f"{DOCKERFILE} names no base image")
    return text


def ask_registry(image: str) -> str:
    """The digest of this image for all platforms, by its registry. Raises ReleaseError."""
    words = ["docker", "buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", image]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=ASK_S, check=False)  # noqa: S603 - an image of our Dockerfile
    if ran.returncode != 0:
        raise ReleaseError(f"no digest of {image}: {ran.stderr.strip()}")
    return ran.stdout.strip()


def write(root: Path, folder: Path, digest_of: Callable[[str], str] = ask_registry) -> Path:
    """Write the pinned Dockerfile into the folder."""
    target = folder / "Dockerfile"
    target.write_text(pinned((root / DOCKERFILE).read_text(), digest_of))
    return target
