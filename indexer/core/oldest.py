"""What a dict that is over its limit gives up: its oldest entries.

Finding the first entry of a dict walks over all that was deleted in front of it. Taken one by one, each would cost as many steps as the dict is long
(16 to 60 µs at 65,536 entries), so some more go at once. An OrderedDict has no such walk, and
takes twice the memory.
"""

from collections.abc import Collection
from itertools import islice
from typing import TypeVar

K = TypeVar("K")

# Of the limit, what goes at once besides the excess, and how much that is at most: dropping so many takes some milliseconds.
SHARE = 16
MORE_MAX = 4_096


def oldest_to_drop(entries: Collection[K], count_max: int) -> list[K]:
    """The keys to remove from a dict in the order of insertion: none within the limit, otherwise the excess and some more."""
    over = len(entries) - count_max
    return list(islice(entries, over + more_to_drop(count_max))) if over > 0 else []


def more_to_drop(count_max: int) -> int:
    """How many go besides the excess where a limit is exceeded."""
    return min(count_max // SHARE, MORE_MAX)
