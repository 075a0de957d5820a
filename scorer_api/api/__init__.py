"""The HTTP API of scorers: decode a request, resolve its tokens, answer it from the prefix index, encode the answer."""
