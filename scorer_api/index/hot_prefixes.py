"""Counts which prefixes are asked for: a tree of block keys, in which a prefix is the path from the root.

    root ─┬─ [k1 k2 k3] ─┬─ [k4]        asked for with k1 … k4
          │              └─ [k5 k6]     another prompt with the same three blocks in front
          └─ [k7]

A node counts the prompts that begin with its path. Counts decay: what was asked for a half-life ago counts half. Keys are chained, so two paths that
have a key in common at the same depth are the same up to there: where they part is found by halving. Nothing but keys is kept: no tokens, no names.
"""

import heapq
import itertools
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from indexer.core.event_pieces import Steps, result_of

HALF_LIFE_S = 600.0
# Of a longer prompt the first so many blocks count. It bounds the work for one prompt: 16,384 tokens where a block has 16.
DEPTH_MAX = 1_024
# Keys that are kept, for each node that may be kept: most prefixes are much shorter than DEPTH_MAX.
KEYS_PER_NODE = 128
# What is kept of all nodes, and of all keys, when there are too many: the rest has room until the next time.
KEPT = 0.75
# Weights grow by so many doublings before all are divided, far from the end of a float.
DOUBLINGS_MAX = 500.0
# To look at so many takes a millisecond or two.
STEP_NODES = 1_024

Cut = tuple[int, int]


class HotPrefix(Struct, frozen=True):
    """`keys`: the path, from the first block on. `parent`: the last key of the node above, None at the top. `requests`: decayed count of prompts.

    `cut`: how the blocks are cut, see `CacheShape.cut`. `asked_s`: when it was asked for last.
    """

    model: str
    cut: Cut
    keys: "array[int]"
    parent: int | None
    requests: float
    asked_s: float


class HotNode(Struct, frozen=True, array_like=True):
    """A node as another process can add it to a tree of its own. `above`: the place of the node above, by the order in which they are told, None for
    a root. `run`: its keys behind those, 64 bits each in the order of this machine. `requests`: decayed count of prompts that go no further.
    """

    model: str
    cut: Cut
    above: int | None
    run: bytes
    requests: float
    asked_s: float


class _Node:
    """`run`: the keys of this node, behind those of the nodes above. `weight`: the count, as if all were counted at the origin of the decay."""

    __slots__ = ("asked_s", "children", "parent", "run", "weight")

    def __init__(self, parent: "_Node | None", run: "array[int]", weight: float, asked_s: float) -> None:
        self.parent = parent
        self.run = run
        self.weight = weight
        self.asked_s = asked_s
        self.children: dict[int, _Node] = {}

    def path(self) -> "array[int]":
        """All keys from the first block on."""
        nodes = [self]
        while (above := nodes[-1].parent) is not None:
            nodes.append(above)
        keys = array("Q")
        for node in reversed(nodes):
            keys += node.run
        return keys


class HotPrefixes:
    """Keeps at most `nodes_max` nodes, and KEYS_PER_NODE times as many keys, or those of two long prompts: 8 bytes each. Those that are asked for
    least make room. A prefix that made room begins at 0 when it comes back, so a count is never too high. Times are of one monotonic clock.
    """

    def __init__(self, nodes_max: int, half_life_s: float = HALF_LIFE_S) -> None:
        self._nodes_max = nodes_max
        # Room for two long prompts at least: one that comes must not be the one that goes.
        self._keys_max = max(2 * DEPTH_MAX, nodes_max * KEYS_PER_NODE)
        self._half_life_s = half_life_s
        self._roots: dict[tuple[str, Cut], _Node] = {}
        self._origin_s: float | None = None
        self.nodes = self.keys = 0
        """How many there are."""

    def note(self, model: str, cut: Cut, keys: "array[int]", now_s: float) -> None:
        """A prompt with these block keys was asked for."""
        if keys:
            self._note(model, cut, keys, self._unit(now_s), now_s)

    def _note(self, model: str, cut: Cut, keys: "array[int]", weight: float, now_s: float) -> None:
        """`now_s`: when it was asked for."""
        node = self._roots.get((model, cut)) or self._roots.setdefault((model, cut), _Node(None, array("Q"), 0.0, now_s))
        at = 0
        while True:
            node.weight += weight
            node.asked_s = max(node.asked_s, now_s)
            if at == len(keys):
                break
            child = node.children.get(keys[at])
            if child is None:
                node.children[keys[at]] = self._added(_Node(node, keys[at:], weight, now_s), len(keys) - at)
                break
            common = _common(child.run, keys, at)
            node = child if common == len(child.run) else self._split(child, common)
            at += common
        if self.nodes > self._nodes_max or self.keys > self._keys_max:
            self._make_room()

    def hottest(self, count: int, now_s: float, model: str | None = None) -> list[HotPrefix]:
        """The prefixes that are asked for most, of this model or of all; one is never before the one that it continues."""
        return result_of(self.hottest_in_steps(count, now_s, model))

    def hottest_in_steps(self, count: int, now_s: float, model: str | None = None) -> Steps[list[HotPrefix]]:
        """The same, in steps between which nothing may be counted."""
        unit = self._unit(now_s)
        hottest: list[tuple[float, int, int, str, Cut, _Node]] = []
        for (name, cut), root in self._roots.items():
            if model in (None, name):
                found = ((-node.weight, depth, order, name, cut, node) for order, (node, depth) in enumerate(_below(root)))
                while piece := list(itertools.islice(found, STEP_NODES)):
                    hottest = heapq.nsmallest(count, hottest + piece, key=lambda item: (item[0], item[1], item[3], item[2]))
                    yield
        return [
            HotPrefix(name, cut, node.path(), node.parent.run[-1] if node.parent and node.parent.run else None, node.weight / unit, node.asked_s)
            for _, _, _, name, cut, node in hottest
        ]

    def requests(self, model: str, cut: Cut, now_s: float) -> float:
        """The decayed count of all prompts of this model, whatever they begin with."""
        root = self._roots.get((model, cut))
        return 0.0 if root is None else root.weight / self._unit(now_s)

    def told(self, now_s: float) -> Iterator[HotNode]:
        """All that is counted, for `add` of another one. A node comes before those that continue it."""
        unit, at = self._unit(now_s), 0
        for (model, cut), root in list(self._roots.items()):
            waiting: list[tuple[_Node, int | None]] = [(root, None)]
            while waiting:
                node, above = waiting.pop()
                own = node.weight - sum(child.weight for child in node.children.values())
                waiting += [(child, at) for child in node.children.values()]
                yield HotNode(model, cut, above, node.run.tobytes(), max(0.0, own / unit), node.asked_s)
                at += 1

    def add(self, nodes: Iterable[HotNode], now_s: float) -> Iterator[None]:
        """Count what another one has counted, on the same clock, a node at each step. Raises ValueError for what none has told."""
        paths: list[array[int]] = []
        for node in nodes:
            path = array("Q")
            if node.above is not None:
                if not 0 <= node.above < len(paths):
                    raise ValueError("a node comes before the one above")
                path += paths[node.above]
            path.frombytes(node.run)
            paths.append(path)
            self._note(node.model, node.cut, path, node.requests * self._unit(now_s), node.asked_s)
            yield

    def _unit(self, now_s: float) -> float:
        """What one prompt weighs that is asked for now: the later, the more, instead of letting all others lose weight."""
        if self._origin_s is None:
            self._origin_s = now_s
        doublings = (now_s - self._origin_s) / self._half_life_s
        if doublings > DOUBLINGS_MAX:
            for root in self._roots.values():
                for node in [root, *(node for node, _ in _below(root))]:
                    node.weight *= 2.0**-doublings
            self._origin_s, doublings = now_s, 0.0
        return float(2.0**doublings)

    def _added(self, node: _Node, keys: int) -> _Node:
        self.nodes += 1
        self.keys += keys
        return node

    def _split(self, node: _Node, length: int) -> _Node:
        """Put a node above this one that has the first so many keys of its run. Returns it."""
        above = node.parent
        assert above is not None, "the root has no keys"
        upper = self._added(_Node(above, node.run[:length], node.weight, node.asked_s), 0)
        above.children[upper.run[0]] = upper
        node.run = node.run[length:]
        node.parent = upper
        upper.children[node.run[0]] = node
        return upper

    def _make_room(self) -> None:
        """Drop those that are asked for least, ends of paths first. All are gone through once, also where each is behind the one before."""
        nodes, keys = self._nodes_max * KEPT, self._keys_max * KEPT
        order = itertools.count()
        ends = [(node.weight, node.asked_s, next(order), node) for root in self._roots.values() for node, _ in _below(root) if not node.children]
        heapq.heapify(ends)
        while self.nodes > nodes or self.keys > keys:
            node = heapq.heappop(ends)[-1]
            above = node.parent
            assert above is not None, "a root is no end"
            del above.children[node.run[0]]
            self.nodes -= 1
            self.keys -= len(node.run)
            if not above.children and above.parent is not None:
                heapq.heappush(ends, (above.weight, above.asked_s, next(order), above))
        for name in [name for name, root in self._roots.items() if not root.children]:
            del self._roots[name]


def _common(run: Sequence[int], keys: Sequence[int], at: int) -> int:
    """How many keys of the run are those of the path from here on; the first one is."""
    end = min(len(run), len(keys) - at)
    if run[end - 1] == keys[at + end - 1]:
        return end
    return bisect_left(range(end), x=True, key=lambda number: run[number] != keys[at + number])


def _below(root: _Node) -> Iterator[tuple[_Node, int]]:
    """Every node below the root, with its depth in nodes; one comes before those that continue it."""
    waiting = [(child, 1) for child in root.children.values()]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        waiting += [(child, depth + 1) for child in node.children.values()]
