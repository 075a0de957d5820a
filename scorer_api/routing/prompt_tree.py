"""A radix tree of routed prompts, by their block keys.

    root ─┬─ [k0 k1 k2] a:2 b:1 ─┬─ [k3 k4] a:1          two prompts were sent to a, one of them longer; one to b
          │                      └─ [x3 x4 x5] b:1
          └─ [y0] a:1

Each node is a run of blocks without a branch, with the number of prompts per holder that pass through it. Keys are chained, so prompts that share the
key at one position share all keys before it: bisection finds how far a run is shared. Adding, removing and matching therefore cost by the branches on
a prompt's path, not by its blocks (apart from copying the keys of a new run). There is one tree for each model and way to cut its blocks.
"""

from array import array
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

H = TypeVar("H", bound=Hashable)


class Node(Generic[H]):
    """See the module. The node at which a prompt ends represents the prompt."""

    __slots__ = ("children", "counts", "keys", "parent")

    def __init__(self, keys: "array[int]", parent: "Node[H] | None") -> None:
        self.keys = keys
        self.parent = parent
        self.counts: dict[H, int] = {}
        self.children: dict[int, Node[H]] = {}


class PromptTree(Generic[H]):
    """See the module. Block keys are 64-bit integers."""

    def __init__(self) -> None:
        self._root: Node[H] = Node(array("Q"), None)
        self.blocks = 0
        """The number of blocks in the tree; those that prompts share count once."""

    def add(self, holder: H, keys: Sequence[int]) -> Node[H]:
        """Add a prompt with these keys, at least one, that was sent to the holder. Pass the returned node to `remove`."""
        node, depth = self._root, 0
        while depth < len(keys):
            child = node.children.get(keys[depth])
            if child is None:
                child = node.children[keys[depth]] = Node(array("Q", keys[depth:]), node)
                self.blocks += len(child.keys)
            else:
                shared = _shared(child.keys, keys, depth)
                if shared < len(child.keys):
                    child = _split(child, shared)
            child.counts[holder] = child.counts.get(holder, 0) + 1
            depth += len(child.keys)
            node = child
        return node

    def remove(self, holder: H, end: Node[H]) -> None:
        """Remove one prompt of the holder that ends at this node. Shared blocks remain for the others."""
        node = end
        while (parent := node.parent) is not None:
            if node.counts[holder] > 1:
                node.counts[holder] -= 1
            else:
                del node.counts[holder]
                if not node.counts:
                    del parent.children[node.keys[0]]
                    self.blocks -= len(node.keys)
            node = parent

    def match(self, keys: Sequence[int]) -> dict[H, int]:
        """Holder → the longest prefix of these blocks, in blocks, that a prompt sent to it has."""
        found: dict[H, int] = {}
        node, depth = self._root, 0
        while depth < len(keys) and (child := node.children.get(keys[depth])) is not None:
            shared = _shared(child.keys, keys, depth)
            depth += shared
            found.update(dict.fromkeys(child.counts, depth))
            if shared < len(child.keys):
                break
            node = child
        return found

    @staticmethod
    def keys_of(end: Node[H]) -> "array[int]":
        """The keys of a prompt that ends at this node."""
        runs = []
        node: Node[H] | None = end
        while node is not None:
            runs.append(node.keys)
            node = node.parent
        found = array("Q")
        for run in reversed(runs):
            found += run
        return found


def _shared(run: "array[int]", keys: Sequence[int], depth: int) -> int:
    """How many blocks of a run equal the prompt's from `depth` on. The first one is known to."""
    most = min(len(run), len(keys) - depth)
    if run[most - 1] == keys[depth + most - 1]:
        return most
    least = 1
    while least < most - 1:
        middle = (least + most) // 2
        if run[middle - 1] == keys[depth + middle - 1]:
            least = middle
        else:
            most = middle
    return least


def _split(node: Node[H], at: int) -> Node[H]:
    """Split a node. Returns the new one, which has the first blocks; the old one keeps the ends of prompts."""
    parent = node.parent
    assert parent is not None, "the root has no run to split"
    first: Node[H] = Node(node.keys[:at], parent)
    first.counts = dict(node.counts)
    parent.children[first.keys[0]] = first
    node.keys = node.keys[at:]
    node.parent = first
    first.children[node.keys[0]] = node
    return first
