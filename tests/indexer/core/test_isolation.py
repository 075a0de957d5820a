"""No tenant ever matches another tenant's blocks, in whatever order an engine and its connectors announce them.

Three tenants send the same tokens: one without a cache salt, two with their own. Every key that is shown must be one that the gpu announced with its
salt before: of the chains of these three it is known by hand which keys belong to whom.
"""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from indexer.core.block_keys import chain_keys, fold_extra_keys, pack_tokens, root_key
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.stream_state import StreamState

SIZE, BLOCKS = 2, 4
TOKENS = pack_tokens(list(range(SIZE * BLOCKS)))
TENANTS: dict[str | None, dict[int, bytes] | None] = {salt: {0: fold_extra_keys([], salt)} if salt else None for salt in (None, "a", "b")}
KEYS = {salt: chain_keys(root_key("m", None, ""), TOKENS, SIZE, extra) for salt, extra in TENANTS.items()}
LOWER = (Tier.CPU, Tier.DISK)


def hashes_of(salt: str | None, dialect: str, start: int, stop: int) -> list[int]:
    """vLLM's hashes depend on the salt, SGLang's do not."""
    tenant = 0 if dialect == "sglang" else 100 * list(TENANTS).index(salt)
    return [tenant + number + 1 for number in range(start, stop)]


def stored(salt: str | None, dialect: str, start: int, stop: int, tier: Tier, *, tells: bool) -> Stored:
    """Blocks of one tenant. `tells`: whether the event has what isolates them."""
    extra = TENANTS[salt] if tells and not start else None
    return Stored(
        hashes=hashes_of(salt, dialect, start, stop),
        parent=hashes_of(salt, dialect, start - 1, start)[0] if start else None,
        tokens=TOKENS[start * SIZE * 4 : stop * SIZE * 4],
        block_size=SIZE,
        tier=tier,
        lora_name=None,
        extra_keys=extra,
        announces_extra_keys=dialect == "vllm",
        lists_extra_keys=tells and dialect == "vllm",
        salt=salt if tells and dialect == "sglang" else None,
        group=0 if dialect == "vllm" else None,
        kind="full_attention" if dialect == "vllm" else None,
    )


def chunk(tier: Tier) -> Stored:
    """A cache connector's own chunk: tokens, a hash of its own, and nothing that says whose it is."""
    return structs.replace(stored(None, "vllm", 0, BLOCKS, tier, tells=False), hashes=[900], block_size=SIZE * BLOCKS, group=None, kind=None)


@st.composite
def some_events(draw: st.DrawFn, dialect: str) -> Event:
    start = draw(st.integers(0, BLOCKS - 1))
    stop = draw(st.integers(start + 1, BLOCKS))
    salt, tier = draw(st.sampled_from(list(TENANTS))), draw(st.sampled_from(LOWER))
    at_gpu, below = stored(salt, dialect, start, stop, Tier.GPU, tells=True), stored(salt, dialect, start, stop, tier, tells=dialect == "sglang")
    events: list[Event] = [
        at_gpu,
        below,
        structs.replace(below, tokens=b"", block_size=0),
        Removed(at_gpu.hashes, draw(st.sampled_from([Tier.GPU, *LOWER])), at_gpu.group),
        Cleared(),
    ]
    if dialect == "vllm":
        states = {"sparse_tokens": (stop - start) * SIZE, "state_tokens": at_gpu.tokens}
        events += [chunk(tier), structs.replace(at_gpu, tokens=b"", extra_keys=None, lists_extra_keys=False, group=1, kind="mamba", **states)]
    return draw(st.sampled_from(events))


def shown(state: StreamState) -> set[int]:
    slots = range(1 if state.shape is None else len(state.shape.groups))
    return {key for slot in slots for tier in Tier for key in state.held(tier, slot)}


def announced_on_gpu(events: Iterable[Event]) -> set[int]:
    """The keys of all blocks that these events announce with their salt."""
    keys: set[int] = set()
    for event in events:
        if isinstance(event, Stored) and event.tier is Tier.GPU and event.tokens:
            (salt,) = [salt for salt in TENANTS if _is_of(event, salt)]
            first = (event.hashes[0] - 1) % 100
            keys.update(KEYS[salt][first : first + len(event.hashes)])
    return keys


def _is_of(event: Stored, salt: str | None) -> bool:
    if event.announces_extra_keys:
        return list(TENANTS).index(salt) == (event.hashes[0] - 1) // 100
    return event.salt == salt


@given(st.lists(st.lists(some_events("vllm"), min_size=1, max_size=4), max_size=8))
def test_no_tenant_matches_anothers_blocks_under_vllm(batches: list[list[Event]]) -> None:
    _check(batches)


@given(st.lists(st.lists(some_events("sglang"), min_size=1, max_size=4), max_size=8))
def test_no_tenant_matches_anothers_blocks_under_sglang(batches: list[list[Event]]) -> None:
    _check(batches)


def _check(batches: list[list[Event]]) -> None:
    state = StreamState("m", "")
    seen: list[Event] = []
    for number, batch in enumerate(batches):
        state.apply(batch, float(number))
        seen += batch
        assert shown(state) <= announced_on_gpu(seen)


def test_a_copy_announced_before_its_block_matches_nobody_until_the_block_is_announced() -> None:
    """By hand: the cpu's copy of tenant a's blocks comes first, with tokens and without the salt."""
    state = StreamState("m", "")
    state.apply([stored("a", "vllm", 0, 2, Tier.CPU, tells=False)], 0.0)
    assert shown(state) == set()
    state.apply([stored("a", "vllm", 0, 2, Tier.GPU, tells=True)], 1.0)
    assert state.held(Tier.CPU) == state.held(Tier.GPU) == set(KEYS["a"][:2])


def test_a_chunk_of_a_cache_connector_counts_for_the_tenant_without_a_salt_alone() -> None:
    state = StreamState("m", "")
    state.apply([chunk(Tier.CPU), stored("a", "vllm", 0, BLOCKS, Tier.GPU, tells=True)], 0.0)
    assert state.held(Tier.CPU) == set()
    state.apply([stored(None, "vllm", 0, BLOCKS, Tier.GPU, tells=True)], 1.0)
    assert state.held(Tier.CPU) == set(KEYS[None])


def test_a_block_whose_key_was_inferred_from_tokens_is_nobodys_parent() -> None:
    """By hand: of tenant a, recurrent states come first, with tokens alone, where the gpu has the same tokens of the tenant without a salt."""
    state = StreamState("m", "")
    state.apply([stored(None, "vllm", 0, 2, Tier.GPU, tells=True)], 0.0)
    of_a = stored("a", "vllm", 0, 2, Tier.GPU, tells=True)
    states = {"sparse_tokens": 2 * SIZE, "state_tokens": of_a.tokens}
    state.apply([structs.replace(of_a, tokens=b"", extra_keys=None, lists_extra_keys=False, group=1, kind="mamba", **states)], 1.0)
    assert state.held(Tier.GPU, 1) == set(KEYS[None][:2]), "these are the tokens that the gpu has"
    state.apply([stored("a", "vllm", 2, BLOCKS, Tier.GPU, tells=True)], 2.0)
    assert state.held(Tier.GPU) == set(KEYS[None][:2]), "whose blocks these are is not known yet"
    state.apply([stored("a", "vllm", 1, BLOCKS, Tier.GPU, tells=True)], 2.5)
    assert state.held(Tier.GPU) == set(KEYS[None][:2]), "the first of these is known by inference only"
    state.apply([of_a], 3.0)
    assert state.held(Tier.GPU) == {*KEYS[None][:2], *KEYS["a"]}
    assert state.held(Tier.GPU, 1) <= set(KEYS["a"])
