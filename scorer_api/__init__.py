"""From changes to a prefix index, and from a prompt to the pods that hold its prefix."""
