"""Worker processes that share one port, for `kv-indexer api --workers N`."""
