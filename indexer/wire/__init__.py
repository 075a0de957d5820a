"""The wire format: frames and payloads as engines send them, decoded into events. Pure."""
