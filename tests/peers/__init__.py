"""This service beside other indexers, on the same events."""
