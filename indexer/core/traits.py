"""What reading a stream's events depends on, besides the blocks that it holds."""

from msgspec import Struct


class Traits(Struct, frozen=True, omit_defaults=True):
    """`groups`: KV-cache group → whether of full attention. `adapters`: names of LoRA adapters that were announced."""

    block_size: int | None
    block_size_is_gpu: bool
    announces_extra_keys: bool
    indexed_group: int | None
    groups: dict[int, bool]
    offloads: bool
    adapters: tuple[str, ...] = ()
