"""Observes the service, the engines and their sockets. A probe never raises for what the other side does: it returns an observation."""
