"""The page at /ui in a real Chromium. Opt-in: `make test-browser`."""
