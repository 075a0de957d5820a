"""The configuration file: TOML, read at the start and again when it changes.

port = 8080
pod_expiry_s = 120

[limits]
log_entries_max = 1_000_000

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

from indexer.config.reload import WatchedFiles
from indexer.config.settings import Settings
from indexer.errors import SettingError
from indexer.http.server import Reconfigurable

log = logging.getLogger(__name__)


def read_file(path: str) -> dict[str, Any]:
    """The file's entries. Raises SettingError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("--config", path, f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError("--config", path, f"is not TOML: {error}") from None


class Reconfiguration:
    """Applies new settings to a service while it runs. `read` reads them again, and raises SettingError; `settings` are those in force."""

    def __init__(self, files: WatchedFiles, read: Callable[[], Settings], settings: Settings, service: Reconfigurable) -> None:
        self.files = files
        self._read = read
        self._settings = settings
        self._service = service

    async def reload(self) -> None:
        """A file with a mistake is logged and changes nothing."""
        try:
            settings = self._read()
        except SettingError as error:
            log.error("settings not read again", extra={"error": str(error)})
            return
        self._settings = await self._service.reconfigure(self._settings, settings)
