"""The kv-indexer command: a module for each of its commands, named in `main.COMMANDS`, and helpers."""
