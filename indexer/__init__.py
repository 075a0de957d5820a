"""From an engine's KV-cache events to ordered changes in a store."""

from importlib.metadata import version

__version__ = version("kv-event-indexer")
