"""Picks a pod for each request: what its prompt costs on each pod, how busy pods are, and what was routed before."""
