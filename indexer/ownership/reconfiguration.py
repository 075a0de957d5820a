"""Settings that are read again while the service runs: only the engines may differ."""

import logging

from indexer.config.settings import Settings, changed_settings
from indexer.errors import SettingError
from indexer.streams.pool import Streams

log = logging.getLogger(__name__)


def applies(streams: Streams, before: Settings, after: Settings) -> bool:
    """Whether new settings can be taken up while the service runs; says in the log what cannot."""
    if changed := changed_settings(before, after):
        log.warning("settings changed that need a restart", extra={"settings": ",".join(changed)})
    try:
        for spec in after.engines:
            streams.check(spec)
    except SettingError as error:
        log.error("settings not applied", extra={"error": str(error)})
        return False
    return True
