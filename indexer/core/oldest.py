"""What a dict that is over its limit gives up: its oldest entries.

Finding the first entry of a dict walks over all that was deleted in front of it. Taken one by one, each would cost as many steps as the dict is long
(16 to 60 µs at 65,536 entries), so some more go at once. An OrderedDict has no such walk, and
takes twice the memory.
"""

from collections.abc import Mapping
from itertools import islice
from typing import TypeVar

K = TypeVar("K")

# Of the limit, what goes at once besides the excess.
SHARE = 16


def oldest_to_drop(entries: Mapping[K, object], count_max: int) -> list[K]:
    """The keys to remove from a dict in the order of insertion: none within the limit, otherwise the excess and a sixteenth of the limit."""
    over = len(entries) - count_max
    return list(islice(entries, over + count_max // SHARE)) if over > 0 else []
