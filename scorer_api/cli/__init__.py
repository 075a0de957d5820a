"""The kv-indexer command, one module per subcommand."""
