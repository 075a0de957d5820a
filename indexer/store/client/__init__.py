"""Clients of Redis: stand-alone, behind Sentinels, and as a Cluster."""
