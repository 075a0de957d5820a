"""Engines without a model, and recordings of real ones: for demos, tests and benches."""
