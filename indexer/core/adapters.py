"""The LoRA adapters of one stream: the names that were announced, and the keys that their prompts chain from."""

from collections import OrderedDict
from collections.abc import Iterable

from indexer.core.block_keys import root_key

# How many names are remembered, and the longest. They are written to Redis with each batch.
ADAPTERS_MAX = 2_048
ADAPTER_LENGTH_MAX = 256
# Root keys that are cached, one for each adapter.
ROOTS_MAX = 4_096


class Adapters:
    """`names`: those that were announced, the longest ago first; to read."""

    def __init__(self, model: str, hash_seed: str) -> None:
        self.names: OrderedDict[str, None] = OrderedDict()
        self._model = model
        self._hash_seed = hash_seed
        self._roots: dict[str | None, int] = {}

    def restore(self, names: Iterable[str]) -> None:
        """Know these names and no others."""
        self.names = OrderedDict.fromkeys(names)

    def note(self, name: str) -> None:
        """An adapter was announced. Above the limit the one announced longest ago is forgotten."""
        if len(name) > ADAPTER_LENGTH_MAX:
            return
        self.names.pop(name, None)
        if len(self.names) >= ADAPTERS_MAX:
            self.names.popitem(last=False)
        self.names[name] = None

    def root(self, name: str | None) -> int:
        """The key that a prompt's first block chains from; without an adapter for None."""
        root = self._roots.get(name)
        if root is None:
            root = root_key(self._model, name, self._hash_seed)
            if len(self._roots) >= ROOTS_MAX:
                self._roots.clear()
            self._roots[name] = root
        return root
