"""The store that replicas share: what indexers own lies in Redis, and every change of it in a log."""
