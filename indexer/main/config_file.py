"""The settings' file: TOML, read at the start and again when it changes.

port = 8080
pod_expiry_s = 120

[[engines]]
pod = "10.0.0.7:8000"
model = "my/model"
events = "tcp://10.0.0.7:5557"
replay = "tcp://10.0.0.7:5558"
"""

import logging
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexer.config.reload import Asking, FileWatch
from indexer.config.settings import Settings
from indexer.errors import SettingError

log = logging.getLogger(__name__)


def read_file(path: str) -> dict[str, Any]:
    """The file's entries. Raises SettingError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("--config", path, f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError("--config", path, f"is not TOML: {error}") from None


class ConfigFile:
    """Waits for the settings to change. `read` makes them anew; `asking` has them read at once."""

    def __init__(self, path: str, read: Callable[[], Settings], asking: Asking | None = None) -> None:
        self._read = read
        self._watch = FileWatch(path, asking=asking)

    async def changed(self) -> Settings:
        """The new settings, once there are any. A file with a mistake is told of and otherwise ignored."""
        while True:
            await self._watch.changed()
            try:
                settings = self._read()
            except SettingError as error:
                log.error("settings not read again", extra={"error": str(error)})
            else:
                return settings
