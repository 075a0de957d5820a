"""What the observations mean. Pure: a check gets values, and returns findings."""
