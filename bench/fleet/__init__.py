"""Routing policies on a simulated fleet: the workloads that they are compared on, and the tables."""
