"""Which process follows which stream: alone in the embedded mode, shared between replicas on Redis."""
