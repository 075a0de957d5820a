"""The prefix index in memory, and the questions that it answers."""
