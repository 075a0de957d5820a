"""Configuration as values: settings, tokens, and noticing that a file changed."""
