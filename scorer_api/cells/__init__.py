"""Answering for several scorers, each of which knows a part of the pods."""
