"""Deterministic simulation: engines, indexers, Redis and scorers in one thread, with virtual time and a schedule of faults from a seed.

    schedule        what happens, and when, all of it from a seed
    virtual_loop    an event loop whose time is virtual; processes in it can be frozen and killed
    redis_model     what Redis does with the commands and scripts of the product
    redis_client    a client of it: latency, lost answers, outages
    dialects        how engines encode what they say
    engine          an engine that publishes and answers replays
    engine_lines    a line between an engine and an indexer, whoever dials
    engine_network  all of them, and replays
    world           processes of the product in this surrounding
    watched_view    a scorer's view that counts the changes in it
    checks          answers compared with the reference
    simulation      one schedule, from its beginning to the verdict
    shrink          the smallest part of a schedule that still fails

All else is the product's own code. `python -m tests.simulation --help` runs ranges of seeds, and single ones again.
"""
