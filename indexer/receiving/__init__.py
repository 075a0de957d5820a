"""Receiving what engines publish: sockets, the receiving thread, inboxes and replay requests."""
