"""The settings' file: TOML, read at the start and again when it changes.

port = 8080
pod_expiry_s = 120

[[engines]]
pod = "10.0.0.7:8000"
model = "my/model"
events = "tcp://10.0.0.7:5557"
replay = "tcp://10.0.0.7:5558"
"""

import asyncio
import logging
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexer.errors import SettingError
from indexer.settings import Settings

log = logging.getLogger(__name__)

# A change is noticed so soon; a look costs one stat.
LOOK_S = 1.0


def read_file(path: str) -> dict[str, Any]:
    """The file's entries. Raises SettingError."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError("--config", path, f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError("--config", path, f"is not TOML: {error}") from None


class ConfigFile:
    """Waits for the settings to change. `read` makes them anew; setting `asked` has them read at once."""

    def __init__(self, path: str, read: Callable[[], Settings]) -> None:
        self._path = path
        self._read = read
        self._seen = self._look()
        self.asked = asyncio.Event()

    def _look(self) -> tuple[int, int, int] | None:
        """What tells one state of the file from another, also where a link is turned to another file."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    async def changed(self) -> Settings:
        """The new settings, once there are any. A file with a mistake is told of and otherwise ignored."""
        while True:
            await self._wait()
            try:
                settings = self._read()
            except SettingError as error:
                log.error("settings not read again", extra={"error": str(error)})
            else:
                return settings

    async def _wait(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self.asked.wait()
            except TimeoutError:
                pass
            was_asked = self.asked.is_set()
            self.asked.clear()
            before, self._seen = self._seen, self._look()
            if was_asked or (self._seen is not None and self._seen != before):
                return
