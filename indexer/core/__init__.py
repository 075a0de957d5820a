"""What a stream holds and what changes it: names, events, block keys, order, state. Pure."""
