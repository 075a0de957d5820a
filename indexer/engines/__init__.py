"""Engines: their specs, the networks where they may be, their HTTP API and their load."""
