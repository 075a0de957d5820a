"""Finds engines in Kubernetes and in DNS."""
