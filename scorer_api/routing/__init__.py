"""Which pod a request is to go to: what its prompt costs where, who is busy, and what was routed already."""
