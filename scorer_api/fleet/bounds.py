"""What caches could give at best: one least-recently-used cache of the fleet's size, and Belady's bound, which knows the future.

Both see the requests in the order of their arrivals, each at once. What running requests hold is not taken from them. The pooled cache keeps answers,
as engines do. Belady's bound keeps what is used again soonest, and nothing else: no policy of any cache of this size gets more.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Sequence

from scorer_api.fleet.request import Request


def pooled_lru(requests: Sequence[Request], blocks: int, block_size: int) -> float:
    """The share of prompt tokens that one cache of so many blocks has."""
    kept: OrderedDict[int, None] = OrderedDict()
    cached = prompts = 0
    for request in requests:
        hashes = request.hashes(block_size)
        usable = hashes[: (request.prompt_length - 1) // block_size]
        found = next((number for number, block in enumerate(usable) if block not in kept), len(usable))
        cached += found * block_size
        prompts += request.prompt_length
        for block in reversed(hashes):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > blocks:
            kept.popitem(last=False)
    return cached / prompts


def belady(requests: Sequence[Request], blocks: int, block_size: int) -> float:
    """The share of prompt tokens that the best of all caches of so many blocks has, which knows what comes."""
    wanted = [request.hashes(block_size)[: (request.prompt_length - 1) // block_size] for request in requests]
    next_use = _next_uses(wanted)
    kept: dict[int, float] = {}
    farthest: list[tuple[float, int, int]] = []
    cached = 0
    for number, hashes in enumerate(wanted):
        found = next((at for at, block in enumerate(hashes) if block not in kept), len(hashes))
        cached += found * block_size
        for depth, block in enumerate(hashes):
            again = next_use[number][depth]
            if again == math.inf:
                kept.pop(block, None)
                continue
            kept[block] = again
            # Of blocks that are used again at the same time the deepest goes first: without those before it, it would be of no use.
            heapq.heappush(farthest, (-again, -depth, block))
        while len(kept) > blocks:
            negative, _, block = heapq.heappop(farthest)
            if kept.get(block) == -negative:
                del kept[block]
    return cached / sum(request.prompt_length for request in requests)


def _next_uses(wanted: Sequence[Sequence[int]]) -> list[list[float]]:
    """Of each block of each request, the number of the next request that wants it; infinite where there is none."""
    last: dict[int, float] = {}
    uses: list[list[float]] = []
    for number in range(len(wanted) - 1, -1, -1):
        uses.append([last.get(block, math.inf) for block in wanted[number]])
        last.update(dict.fromkeys(wanted[number], float(number)))
    return uses[::-1]
