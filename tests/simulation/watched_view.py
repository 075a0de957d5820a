"""A scorer's view that counts the changes in it, so that nobody is asked again where nothing changed."""

from typing import Any

from scorer_api.index.view import View


class WatchedView(View):
    """`changes`: of what its streams hold."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.changes = 0

    def open(self, *words: Any) -> None:
        self.changes += 1
        super().open(*words)

    def append(self, *words: Any) -> None:
        self.changes += 1
        super().append(*words)

    def drop(self, *words: Any) -> None:
        self.changes += 1
        super().drop(*words)

    def close(self, *words: Any) -> None:
        self.changes += 1
        super().close(*words)

    def exchange(self, *words: Any) -> Any:
        self.changes += 1
        return super().exchange(*words)

    def note_dropped(self, *words: Any) -> None:
        self.changes += 1
        super().note_dropped(*words)
