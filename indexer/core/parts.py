"""The parts of what a stream holds, each by engine hash: one for each tier, numbered as it is, then those of parked and of removed blocks."""

from collections import defaultdict

from indexer.core.events import Tier

PARKED = len(Tier)
REMOVED = PARKED + 1

Touched = defaultdict[int, list[int]]
"""Part → the engine hashes whose records may have changed, some of them more than once. Only parts of which any were touched are there."""
