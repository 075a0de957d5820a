"""Modules that need a library of one of the package's extras."""

from importlib import import_module
from typing import Any

from indexer.errors import SettingError


def import_extra(module: str, library: str, extra: str, flag: str, value: str | None = None) -> Any:
    """A module of ours that needs this library. Raises SettingError, which names the flag that needs it and the extra, where it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("indexer", "scorer_api")):
            raise
        raise SettingError(flag, value, f"needs {library}: pip install 'kv-event-indexer[{extra}]'") from None
