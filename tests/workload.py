"""One rank's random life: what an engine does with its cache, told to its subscribers and to the reference alike.

It shares no code with the product. Everything comes from the seed but the moment at which it happens.
"""

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from math import gcd, lcm
from random import Random
from typing import Any, NamedTuple

from tests.engine import Engine, cleared, removed, stored
from tests.reference import Copy, Layer, Rank, Text

MEDIUM = {"gpu": "GPU", "cpu": "CPU"}
KINDS = {"full": "full_attention", "window": "sliding_window", "state": "mamba"}
# How often an engine does what, of all that it does.
DEEDS = {"request": 60, "repeat": 8, "evict": 12, "offload": 8, "lower_evict": 4, "rename": 3, "withhold": 3, "clear": 0.5}
BATCHES_WITHHELD_MAX = 20
# States older than this explain no answer that a test would accept.
REMEMBERED_S = 60.0


class Moment(NamedTuple):
    """What a rank held since then."""

    since_s: float
    rank: Rank


class Withheld(NamedTuple):
    """The blocks before a child that was published without them."""

    text: Text
    stop: int
    batches_left: int


class Publisher:
    """Drives one engine, and a rank of the reference with it. Not safe for threads: the fleet has the lock.

    `capacity`: how many copies its gpu holds; beyond it the oldest go. `late_offloads`: some blocks are said to lie in a lower tier only in a
    batch after the one that removed them from the gpu. `without`: what it never does by itself. `layers`: the KV-cache groups of a hybrid model, in
    place of one with this block size.
    """

    def __init__(
        self,
        pod: str,
        number: int,
        engine: Engine,
        texts: Sequence[Text],
        *,
        seed: int,
        block_size: int = 4,
        counts_copies: bool = True,
        capacity: int = 120,
        late_offloads: bool = True,
        without: Collection[str] = (),
        layers: Sequence[Layer] = (),
    ) -> None:
        self.pod = pod
        self.number = number
        self.engine = engine
        self.layers = tuple(layers) or (Layer("full", block_size),)
        self.block_size = lcm(*(layer.size for layer in self.layers))
        """Tokens of the blocks that are counted, of which each holds a whole number of every group's."""
        self._unit = gcd(*(layer.size for layer in self.layers))
        self.counts_copies = counts_copies
        self.capacity = capacity
        self.late_offloads = late_offloads
        self._weights = {deed: weight for deed, weight in DEEDS.items() if deed not in without}
        self.deeds: Counter[str] = Counter()
        self.batches = 0
        self.lives = 0
        self.is_alive = False
        self.moments: deque[Moment] = deque()
        self._texts = [text for text in texts if len(text.tokens) > self.block_size]
        self._random = Random(f"{seed} {pod} {number}")

    # Its life

    def start(self) -> None:
        """A new life: it holds nothing."""
        self.engine.start()
        self.is_alive = True
        self.lives += 1
        self.rank = self.empty_rank()
        self._withheld: list[Withheld] = []
        self._evicted: deque[Copy] = deque(maxlen=8)
        self._note(time.monotonic())

    def kill(self) -> None:
        """Gone, with all it held. Idempotent."""
        self.is_alive = False
        self.engine.kill()

    def step(self) -> None:
        """Do something, and say so in one batch."""
        kinds = self._random.choices(list(self._weights), list(self._weights.values()), k=self._random.randint(1, 3))
        if kinds.count("clear") > 1:
            kinds = ["clear"]  # a second reset in one batch would be that of the lower tiers
        events = [event for kind in kinds for event in self._do(kind)]
        events += self._release_due()
        if events:
            self.publish(*events)

    def publish(self, *events: Any, **how: bool) -> int:
        """One batch; its deeds are done to the reference already. Returns its number."""
        at_s = time.monotonic()
        number = self.engine.publish(*events, **how)
        self.batches += 1
        self._note(at_s)
        return number

    def _note(self, at_s: float) -> None:
        held = self.empty_rank()
        held.copies = list(self.rank.copies)
        self.moments.append(Moment(at_s, held))
        while len(self.moments) > 2 and self.moments[1].since_s < at_s - REMEMBERED_S:
            self.moments.popleft()

    def empty_rank(self) -> Rank:
        """It holds nothing."""
        return Rank(*self.layers, counts_copies=self.counts_copies)

    def during(self, start_s: float, stop_s: float) -> list[Rank]:
        """What it held at any time between these two, the newest first."""
        found = []
        until_s = float("inf")
        for moment in reversed(self.moments):
            if moment.since_s <= stop_s and until_s >= start_s:
                found.append(moment.rank)
            if moment.since_s < start_s:
                break
            until_s = moment.since_s
        return found

    def since(self, is_so: Callable[[Rank], bool], now_s: float) -> float | None:
        """How many seconds ago this was true of what it held for the last time; None where it never was within what is remembered."""
        until_s = now_s
        for moment in reversed(self.moments):
            if is_so(moment.rank):
                return round(now_s - until_s, 3)
            until_s = moment.since_s
        return None

    # Deeds: each is done to the reference and returned as the events that say so

    def store(self, text: Text, start: int, stop: int, *, renames_last: bool = False) -> list[dict[str, Any]]:
        """Blocks `start` to `stop` of a text are computed and cached, in each group. `renames_last`: the last one under a second name."""
        return [self._store_in(number, text, start, stop, renames_last=renames_last) for number in range(len(self.layers))]

    def _store_in(self, number: int, text: Text, start: int, stop: int, *, renames_last: bool) -> dict[str, Any]:
        """The same in one group. Where groups have different block sizes, a block has the name of the smallest one that ends with it."""
        layer = self.layers[number]
        ends = range(start * self.block_size + layer.size, stop * self.block_size + 1, layer.size)
        copies = [self._copy("gpu", text, end, int(renames_last and end == ends[-1]), number) for end in ends]
        for copy in copies:
            self.rank.store(copy)
        parent = self._hash(self._copy("gpu", text, start * self.block_size)) if start else None
        tokens = text.tokens[start * self.block_size : stop * self.block_size]
        extra_keys = [self._extra_keys(text, end - layer.size, end) for end in ends]
        hashes = [self._hash(copy) for copy in copies]
        group = {"group_idx": number, "kv_cache_spec_kind": KINDS[layer.kind]}
        if layer.window:
            group["kv_cache_spec_sliding_window"] = layer.window
        return stored(hashes, tokens, parent, block_size=layer.size, lora_name=text.lora, extra_keys=extra_keys, **group)

    def _copy(self, tier: str, text: Text, end: int, name: int = 0, layer: int = 0) -> Copy:
        """The block that ends with so many tokens of a text."""
        return Copy(tier, text.until(end // self._unit, self._unit), name, layer)

    def remove(self, copies: Sequence[Copy]) -> list[dict[str, Any]]:
        """These copies are evicted."""
        events = []
        for copy in copies:
            self.rank.remove(copy)
            events.append(removed([self._hash(copy)], medium=MEDIUM[copy.tier], group_idx=copy.layer))
            if copy.tier == "gpu" and not copy.name:
                self._evicted.append(copy)
        return events

    def offload(self, copies: Sequence[Copy]) -> list[dict[str, Any]]:
        """The blocks of these copies lie in the cpu's memory too. The announcement is a placeholder, without tokens."""
        if not copies:
            return []
        for copy in copies:
            self.rank.update(copy._replace(tier="cpu"))
        self.rank.reads_whole_prompts = True  # the form is that of the OffloadingConnector
        events = []
        for number in sorted({copy.layer for copy in copies}):
            hashes = [self._hash(copy) for copy in copies if copy.layer == number]
            events.append(stored(hashes, [], None, block_size=0, medium="CPU", extra_keys=None, group_idx=number, kv_cache_spec_kind=None))
        return events

    def clear(self) -> dict[str, Any]:
        self.rank.clear_gpu()
        return cleared()

    def withhold(self, text: Text, start: int, stop: int) -> list[dict[str, Any]]:
        """Blocks `start` to `stop` are published before those they follow, which `release` publishes."""
        self._withheld.append(Withheld(text, start, self._random.randint(1, BATCHES_WITHHELD_MAX)))
        return self.store(text, start, stop)

    def release(self) -> list[dict[str, Any]]:
        """All that was withheld."""
        released, self._withheld = self._withheld, []
        return [event for withheld in released for event in self.store(withheld.text, 0, withheld.stop)]

    def blocks(self, text: Text) -> int:
        """How many of this rank's blocks a text has."""
        return len(text.tokens) // self.block_size

    # At random

    def _do(self, kind: str) -> list[dict[str, Any]]:
        deed = {
            "request": self._request,
            "repeat": self._repeat,
            "evict": lambda: self.remove(self._some("gpu")),
            "offload": self._offload,
            "lower_evict": lambda: self.remove(self._some("cpu")),
            "rename": self._rename,
            "withhold": self._withhold_some,
            "clear": lambda: [self.clear()],
        }[kind]
        events = deed()
        if events:
            self.deeds[kind] += 1
        return events

    def _request(self) -> list[dict[str, Any]]:
        """A prompt is served: what is not in the gpu is computed."""
        text = self._random.choice(self._texts)
        stop = self._random.randint(1, self.blocks(text))
        held = {(copy.layer, copy.text) for copy in self.rank.copies if copy.tier == "gpu" and not copy.name}
        start = next((block for block in range(stop) if not self._wanted(text, block) <= held), stop)
        if start == stop:
            return []
        blocks = sum((stop - start) * self.block_size // layer.size for layer in self.layers)
        return [*self._make_room(blocks), *self.store(text, start, stop)]

    def _wanted(self, text: Text, block: int) -> set[tuple[int, Text]]:
        """What all groups hold of one block that is counted, once it is computed."""
        start, stop = block * self.block_size, (block + 1) * self.block_size
        return {
            (number, self._copy("gpu", text, end).text)
            for number, layer in enumerate(self.layers)
            for end in range(start + layer.size, stop + 1, layer.size)
        }

    def _repeat(self) -> list[dict[str, Any]]:
        """The last block of a prompt whose length is a multiple of the block size is computed again."""
        whole = [copy for copy in self.rank.copies if copy.tier == "gpu" and not copy.name and not len(copy.text.tokens) % self.block_size]
        if not whole:
            return []
        text = self._random.choice(whole).text
        blocks = self.blocks(text)
        return self.store(text, blocks - 1, blocks)

    def _offload(self) -> list[dict[str, Any]]:
        self.deeds["late_offload"] += (chosen := self._random.choice(["stays", "leaves", "late"])) == "late" and self.late_offloads
        if chosen == "late" and self.late_offloads:
            return self.offload([self._evicted.pop()] if self._evicted else [])
        copies = [copy for copy in self._some("gpu") if not copy.name]
        if chosen == "leaves":  # the announcement follows the removal
            return [*self.remove(copies), *self.offload(copies)]
        return self.offload(copies)

    def _rename(self) -> list[dict[str, Any]]:
        """A prompt is announced as a whole once more, its last block under another name."""
        known = [text for text in self._texts if self._is_announced(text, 1)]
        if not known:
            return []
        text = self._random.choice(known)
        # The second name never comes first: what waits for a parent waits for its first name. An adapter whose prompt begins under another name was
        # reloaded, which is no deed here.
        ends = [end for end in range(1 + bool(text.lora), self.blocks(text) + 1) if self._is_announced(text, end)]
        return self.store(text, 0, self._random.choice(ends), renames_last=True) if ends else []

    def _withhold_some(self) -> list[dict[str, Any]]:
        text = self._random.choice(self._texts)
        blocks = self.blocks(text)
        starts = [start for start in range(1, blocks) if not self._is_announced(text, start)]
        if not starts:
            return []
        start = self._random.choice(starts)
        return self.withhold(text, start, self._random.randint(start + 1, blocks))

    def _is_announced(self, text: Text, blocks: int) -> bool:
        """Whether the block that ends so many of a text was announced, under its first name."""
        return (self._copy("gpu", text, blocks * self.block_size).text, 0) in self.rank.announced

    def _release_due(self) -> list[dict[str, Any]]:
        waiting = [withheld._replace(batches_left=withheld.batches_left - 1) for withheld in self._withheld]
        self._withheld = [withheld for withheld in waiting if withheld.batches_left > 0]
        due = [withheld for withheld in waiting if withheld.batches_left <= 0]
        return [event for withheld in due for event in self.store(withheld.text, 0, withheld.stop)]

    def _make_room(self, blocks: int) -> list[dict[str, Any]]:
        gpu = [copy for copy in self.rank.copies if copy.tier == "gpu"]
        return self.remove(gpu[: max(0, len(gpu) + blocks - self.capacity)])

    def _some(self, tier: str) -> list[Copy]:
        copies = [copy for copy in self.rank.copies if copy.tier == tier]
        return self._random.sample(copies, min(len(copies), self._random.randint(1, 4)))

    # On the wire

    def _hash(self, copy: Copy) -> int:
        """This engine's own name for a block. A new life has the same ones, as engines do whose seed is set."""
        named = repr((self.pod, copy.text, copy.name)).encode()
        return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "big")

    def _extra_keys(self, text: Text, start: int, stop: int) -> list[Any] | None:
        """Of the block between these tokens. Images are given by the smallest blocks."""
        images = [image for of_unit in text.images[start // self._unit : stop // self._unit] for image in of_unit]
        keys: list[Any] = [text.lora] if text.lora else []
        keys += [[image, 0] for image in images]
        keys += [text.salt] if text.salt and not start else []
        return keys or None


def make_texts(seed: int, count: int = 24, block_size: int = 4) -> list[Text]:
    """Prompts of 2 to 14 blocks: three system prompts, conversations that follow one of them, and some that part from another in the middle.

    Some have a LoRA, a cache salt, an image. Each has a token more than its blocks.
    """
    random = Random(f"{seed} texts")
    systems = [_tokens(random, 3 * block_size) for _ in range(3)]
    found: list[Text] = []
    for number in range(count):
        length = random.randint(2, 14) * block_size
        beginning = random.choice(systems)
        if found and number % 4 == 3:
            other = random.choice(found).tokens
            beginning = other[: random.randint(1, len(other) // block_size) * block_size]
        tokens = (*beginning, *_tokens(random, length))[: length + 1]
        lora = "ad" if number % 6 == 4 else None
        salt = "tenant" if number % 6 == 5 else None
        images = ((), ("cat",)) if number % 8 == 6 else ()
        found.append(Text(tokens, lora, salt, images))
    return found


def make_strangers(seed: int, known: Iterable[Text]) -> list[Text]:
    """Prompts that nobody was asked, though many begin like those that somebody was."""
    random = Random(f"{seed} strangers")
    texts = list(known)
    found = [Text(()), Text((1,)), Text(_tokens(random, 41))]
    for text in random.sample(texts, min(6, len(texts))):
        found.append(text._replace(tokens=text.tokens[: random.randint(1, len(text.tokens) - 1)]))
        place = random.randrange(len(text.tokens))
        found.append(text._replace(tokens=(*text.tokens[:place], text.tokens[place] ^ 1, *text.tokens[place + 1 :])))
        found.append(text._replace(lora=None if text.lora else "ad"))
        found.append(text._replace(salt=None if text.salt else "tenant"))
        found.append(text._replace(images=() if text.images else (("cat",),)))
    return [text for text in found if text not in texts]


def _tokens(random: Random, count: int) -> tuple[int, ...]:
    return tuple(random.randrange(2**20) for _ in range(count))
