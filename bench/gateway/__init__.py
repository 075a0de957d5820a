"""What the endpoint picker costs behind a real Envoy: `make bench-gateway`."""
