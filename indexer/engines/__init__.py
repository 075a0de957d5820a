"""The engines: how a user names one, where it may be, its own HTTP API and its load."""
