"""How fast it is: `python -m bench`. The real command in a process of its own, loaded by others over real sockets and real HTTP."""
