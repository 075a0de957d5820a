"""Finds engines in Kubernetes."""
