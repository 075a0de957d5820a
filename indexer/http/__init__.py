"""What all roles share over HTTP: serving an app, request and response bodies, problems, tokens, TLS, and the common routes."""
