"""What reading a stream's events depends on, besides the blocks that it holds."""

from msgspec import Struct

from indexer.core.groups import CacheShape, Group


class Traits(Struct, frozen=True, omit_defaults=True):
    """`shape`: None before any block. `unsized`: KV-cache groups of which no block size is known. `adapters`: names of LoRA adapters that were
    announced."""

    shape: CacheShape | None
    announces_extra_keys: bool
    offloads: bool
    unsized: tuple[Group, ...] = ()
    adapters: tuple[str, ...] = ()
