"""Settings for the services of tests: as words of a command line, or as a value.

Limits have no flags. Their entries go to a configuration file, which is removed when the test process ends.
"""

import atexit
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from indexer.config.settings import Settings, limit_fields
from indexer.main.read_settings import read_settings

# Short enough for tests, long enough for a small machine under load.
QUICK = {
    "silence_s": "0.3",
    "silence_max_s": "0.6",
    "replay_idle_s": "0.5",
    "replay_retry_s": "0.05",
    "replay_retry_max_s": "0.2",
    "reconnect_s": "0.05",
}
LIMITS = frozenset(field.name for field in limit_fields())


def words_of(settings: Mapping[str, str]) -> list[str]:
    """The words of a command line that give these settings."""
    flags, limits = _split(settings)
    if limits:
        assert "config" not in flags, "the limits need a configuration file of their own"
        flags["config"] = str(_file(_toml(limits)))
    return [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]


def settings_of(settings: Mapping[str, str], engines: Sequence[str] = ()) -> Settings:
    """The value that a service makes of these settings."""
    flags, limits = _split(settings)
    return read_settings(flags, engines, {}, tomllib.loads(_toml(limits)))


def _split(settings: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Flags and limits."""
    return (
        {name: value for name, value in settings.items() if name not in LIMITS},
        {name: value for name, value in settings.items() if name in LIMITS},
    )


def _toml(limits: Mapping[str, str]) -> str:
    return "\n".join(["[limits]", *(f"{name} = {value}" for name, value in limits.items()), ""])


def _file(text: str) -> Path:
    path = _directory() / f"{sha256(text.encode()).hexdigest()[:16]}.toml"
    if not path.exists():
        path.write_text(text, encoding="utf-8")
    return path


@cache
def _directory() -> Path:
    path = Path(tempfile.mkdtemp(prefix="kv-indexer-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
