"""How costs grow: queries with the prompt, the pods and the index; events with their size; memory, and the load of a scorer."""
