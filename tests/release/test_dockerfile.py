"""Base images by digest. No digest stands in the repository: only a registry knows them."""

from pathlib import Path

import pytest

from release import dockerfile
from release.errors import ReleaseError
from tests.running import ROOT

TEXT = (ROOT / dockerfile.DOCKERFILE).read_text()


def test_every_base_gets_its_digest_and_nothing_else_changes(tmp_path: Path) -> None:
    digests: dict[str, str] = {}

    def digest_of(image: str) -> str:
        return digests.setdefault(image, f"sha256:{len(digests):064x}")

    pinned = dockerfile.write(ROOT, tmp_path, digest_of).read_text()
    assert len(digests) == 2
    assert all(f"_IMAGE={image}@{digest}\n" in pinned for image, digest in digests.items())
    for image, digest in digests.items():
        pinned = pinned.replace(f"{image}@{digest}", image)
    assert pinned == TEXT


@pytest.mark.parametrize("said", ["", "latest", "sha256:12", "sha256:" + "g" * 64])
def test_what_is_no_digest_is_refused(said: str) -> None:
    with pytest.raises(ReleaseError, match="is no digest"):
        dockerfile.pinned(TEXT, lambda _: said)


def test_a_dockerfile_without_bases_is_refused() -> None:
    with pytest.raises(ReleaseError, match="names no base image"):
        dockerfile.pinned("FROM scratch\n", lambda _: "")
