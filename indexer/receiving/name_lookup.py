"""Looks up names in threads of its own, which nobody waits for.

A look-up cannot be ended, and one whose server is silent takes half a minute. In threads that others need, a few such names would hold those up, and
the end of the process. The same look-up runs once at a time, whoever asks for it.
"""

import socket
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

Question = tuple[str | bytes | None, str | int | None, int, int, int, int]
"""The arguments of `socket.getaddrinfo`: host, port, family, type, protocol, flags."""
Outcome = list[tuple[Any, ...]] | OSError | UnicodeError
"""What it returns or raises."""

# So many names may be silent before others wait for them.
THREADS_MAX = 64


class NameLookup:
    """Threads are started as they are needed, up to `threads_max`, and end with the process."""

    def __init__(self, threads_max: int = THREADS_MAX) -> None:
        self._threads_max = threads_max
        self._threads = 0
        self._lock = Lock()
        self._questions: SimpleQueue[Question] = SimpleQueue()
        self._asking: dict[Question, list[Callable[[Outcome], object]]] = {}
        """Question → whom to tell. Both belong to the lock."""

    def ask(self, question: Question, tell: Callable[[Outcome], object]) -> None:
        """Look it up. `tell` is called with the outcome, in a thread of this; it raises nothing."""
        with self._lock:
            if question in self._asking:
                self._asking[question].append(tell)
                return
            self._asking[question] = [tell]
            if self._threads < min(len(self._asking), self._threads_max):
                self._threads += 1
                Thread(target=self._work, name="name look-up", daemon=True).start()
        self._questions.put(question)

    def _work(self) -> None:
        while True:
            question = self._questions.get()
            outcome: Outcome
            try:
                outcome = socket.getaddrinfo(*question)
            except (OSError, UnicodeError) as error:
                outcome = error
            with self._lock:
                told = self._asking.pop(question)
            for tell in told:
                tell(outcome)


NAMES = NameLookup()
"""The one of this process."""
