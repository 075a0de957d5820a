"""The key for the engines' own API."""

import logging
import os
from typing import Self

from indexer.config.auth_tokens import read_tokens
from indexer.config.settings import Settings
from indexer.errors import SettingError

log = logging.getLogger(__name__)


class EngineKey:
    """The API key of the engines, read again when its file changes. Raises SettingError for a file that cannot be used."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._key = read_tokens(path, "--engine-api-key-file")[0]
        self._version = self._file_version()

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """That of the settings, None where they name none. Raises SettingError."""
        return None if settings.engine_api_key_file is None else cls(settings.engine_api_key_file)

    def _file_version(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino

    def header(self) -> dict[str, str]:
        """The header that a request to an engine carries."""
        if (version := self._file_version()) != self._version:
            self._version = version
            try:
                self._key = read_tokens(self._path, "--engine-api-key-file")[0]
            except SettingError as error:
                log.error("engines' key not read again", extra={"error": str(error)})
        return {"Authorization": f"Bearer {self._key}"}
