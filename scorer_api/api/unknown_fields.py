"""Fields of a body that are not the request's own: those of the OpenAI API and of engines are passed over, misspelled ones of ours are refused.

A router may forward its client's body as it is. A name counts as misspelled if it differs from one of ours only in case, `_` and `-`, or by one
letter, two where ours is long: a letter that is wrong, missing, too many, or swapped with its neighbour.
"""

from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import islice

# Names of other APIs that are close to one of ours.
FOREIGN = frozenset({"mode", "models"})
# So many names of a body are compared with ours; a body of an API has fewer.
NAMES_MAX = 128
NAME_LENGTH_MAX = 64
# Letters of a name of ours with which others are close by a mistake only.
LONG_NAME = 10


def misspelled(names: Iterable[str], own: Collection[str]) -> tuple[str, str] | None:
    """The first name that is none of our own and resembles one, with the one that it resembles."""
    for name in islice((name for name in names if name not in own), NAMES_MAX):
        if (meant := _meant(name, frozenset(own))) is not None:
            return name, meant
    return None


@lru_cache(maxsize=4_096)
def _meant(name: str, own: frozenset[str]) -> str | None:
    if name in FOREIGN or len(name) > NAME_LENGTH_MAX:
        return None
    plain = _plain(name)
    distances = {field: _distance(plain, _plain(field)) for field in own}
    close = [(distance, field) for field, distance in distances.items() if distance <= (2 if len(_plain(field)) >= LONG_NAME else 1)]
    return min(close)[1] if close else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _distance(one: str, other: str) -> int:
    """How many letters have to be changed, added, left out or swapped with their neighbour; 3 stands for 3 and more."""
    if abs(len(one) - len(other)) > 2:
        return 3
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], wanted):
                best = min(best, last[j - 2] + 1)
            row.append(best)
    return min(3, row[-1])
