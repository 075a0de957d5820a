"""The HTTP API: requests from their bytes to the bytes of their answers."""
