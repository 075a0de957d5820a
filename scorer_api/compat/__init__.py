"""Routes of other indexers, for clients that were written for them."""
