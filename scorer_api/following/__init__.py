"""Following what indexers write to Redis, into the prefix index."""
