"""When signs of owners were given, by our own clock, whatever Redis's clock does. Pure.

A time of Redis says how old something is only as long as its clock runs on. It may be set, by an hour or more, at any moment: what an owner that is
gone wrote then seems to have been written just now, or in the future. So a time counts from the first look at which it was there, and never longer.

All local times are of the monotonic clock.
"""

from collections.abc import Mapping


class Terms:
    """Until when streams are trusted. A term that was not renewed ends a lease after it was first seen, at the latest."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: dict[str, tuple[int, float]] = {}
        """Name → its term, and from when on it counts."""

    def note(self, until_ms: Mapping[str, int], clock_s: float, asked_s: float) -> dict[str, float]:
        """Name → until when it is trusted. `until_ms`: by Redis's clock; `clock_s`: what to add to a time of Redis; `asked_s`: when it was asked for.

        A term that is further ahead than any owner sets it was set by another clock: it counts once it was renewed.
        """
        seen: dict[str, tuple[int, float]] = {}
        ends: dict[str, float] = {}
        for name, term_ms in until_ms.items():
            end_s = clock_s + term_ms / 1000
            before = self._seen.get(name)
            if before is not None and before[0] == term_ms:
                seen[name] = before
            elif before is None and end_s > asked_s + 2 * self._lease_s:
                seen[name] = term_ms, float("-inf")
            else:
                seen[name] = term_ms, asked_s
            ends[name] = min(end_s, seen[name][1] + self._lease_s)
        self._seen = seen
        return ends


class Signs:
    """When each of some signs was given."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, float]] = {}
        self._asked_s: float | None = None

    def note(self, at_ms: Mapping[str, int], clock_s: float, asked_s: float) -> dict[str, float]:
        """Name → when it was given. `at_ms`: by Redis's clock; a new time stands for a new sign.

        A sign that is new was given since the last look, whatever its time says, and before this one.
        """
        seen: dict[str, tuple[int, float]] = {}
        for name, time_ms in at_ms.items():
            before = self._seen.get(name)
            if before is not None and before[0] == time_ms:
                seen[name] = before
                continue
            given_s = min(clock_s + time_ms / 1000, asked_s)
            if before is not None and self._asked_s is not None:
                given_s = max(given_s, self._asked_s)
            seen[name] = time_ms, given_s
        self._seen, self._asked_s = seen, asked_s
        return {name: given_s for name, (_, given_s) in seen.items()}
