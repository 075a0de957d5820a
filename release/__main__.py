"""`python -m release COMMAND`, behind the make targets `release`, `release-dockerfile`, `release-notes`, `release-check` and `version`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from release import build, changelog, dockerfile, versions
from release.errors import ReleaseError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "dist"


def check(tag: str) -> None:
    """Raises ReleaseError where the tree is not ready, or the tag is another version's."""
    build.check_tree(ROOT)
    version = versions.current(ROOT)
    if tag and tag != f"v{version}":
        raise ReleaseError(f"the tag {tag} should be v{version}, the version in pyproject.toml")


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m release")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="make everything in dist/")
    commands.add_parser("dockerfile", help="write dist/Dockerfile, with base images pinned by digest")
    commands.add_parser("notes", help="print what changed with this release")
    commands.add_parser("check", help="check that the tree is ready").add_argument("tag", nargs="?", default="")
    commands.add_parser("version", help="write a version into every file that has it").add_argument("version")
    parsed = parser.parse_args(words)
    try:
        match parsed.command:
            case "build":
                build.check_tree(ROOT)
                print(*(path.relative_to(ROOT) for path in build.build(ROOT, FOLDER)), sep="\n")  # noqa: T201 - what the command is for
            case "dockerfile":
                FOLDER.mkdir(exist_ok=True)
                print(dockerfile.write(ROOT, FOLDER).relative_to(ROOT))  # noqa: T201
            case "notes":
                print(changelog.notes((ROOT / "CHANGELOG.md").read_text(), versions.current(ROOT)))  # noqa: T201
            case "check":
                check(parsed.tag)
            case "version":
                versions.set_everywhere(ROOT, parsed.version)
    except ReleaseError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
