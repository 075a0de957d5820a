"""A fleet of engines in virtual time: what a routing policy does to users, before anything is bought.

workload ─▶ fleet (clock, arrivals) ─▶ router ─▶ pod (batching, cache) ─▶ events, metrics ─▶ router; measured: what each request got
"""
