"""What a router picks, with a real view and real loads; time is what the test says it is.

A pod's prefill rate is 1,000 tokens/s unless said otherwise, a block has 16 tokens. Prompts are made of letters, a block each.
"""

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.block_keys import chain_keys, root_key
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.groups import CacheShape, Group, Kind
from indexer.core.names import StreamKey, Trust
from indexer.engines.load import Load
from indexer.limits import Limits
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.routing.pick import NoPodError, Pick, PickRequest, UnknownModelError
from scorer_api.routing.policies import POLICY_NAMES, PolicyName
from scorer_api.routing.router import Router

SIZE = 16
EVERYTHING = PickRequest()
# Answers of one token: what running requests cost is next to nothing.
SHORT = PickRequest(output_tokens=1)


class World:
    """A view and a router. Everything happens at `now_s` unless said otherwise."""

    def __init__(self, *pods: str, seed: int | None = 1, view: View | None = None, policy: PolicyName = "cost", **limits: object) -> None:
        self.settings = Settings(route_policy=policy, limits=Limits.of(route_seed=seed, route_prefill_tokens_per_s=1000.0, **limits))
        self.view = view or View(self.settings)
        self.registry = CollectorRegistry()
        self.metrics = RouteMetrics(self.registry)
        self.router = Router(self.settings, self.view, self.metrics)
        self.now_s = 1000.0
        for pod in pods:
            self.open(pod)

    def open(self, pod: str, rank: int = 0, trust: Trust = Trust.LIVE, block_size: int | None = SIZE) -> None:
        stream = StreamKey("m", pod, rank)
        self.view.open(stream)
        self.view.set_trust(stream, trust)
        if block_size is not None:
            self.store(pod, ["a block of its own"], rank, block_size)

    def store(self, pod: str, letters: Iterable[str], rank: int = 0, block_size: int = SIZE, tier: Tier = Tier.GPU, held: bool = True) -> None:
        change = Change()
        change.touched[tier].update(dict.fromkeys(keys(letters, block_size), held))
        self.view.append(StreamKey("m", pod, rank), CacheShape(block_size), change)

    def load(self, pod: str, load: Load, age_s: float = 0.0) -> None:
        self.view.loads.note("m", pod, load, self.now_s - age_s)

    def pick(self, letters: Iterable[str], request: PickRequest = SHORT, model: str = "m") -> Pick:
        return self.router.pick(prompt(letters, model), request, self.now_s)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


def tokens(letters: Iterable[str], size: int = SIZE) -> bytes:
    """A block of tokens that no other letter or text has, for each."""
    return b"".join(random.Random(letter).randbytes(4 * size) for letter in letters)


def prompt(letters: Iterable[str], model: str = "m") -> Prompt:
    """These blocks and one token more, so that all of them can be used."""
    return Prompt(model, tokens(letters) + b"\0\0\0\0")


def keys(letters: Iterable[str], block_size: int = SIZE) -> list[int]:
    return chain_keys(root_key("m", None, ""), tokens(letters), block_size)


def idle(rate: float = 1000.0) -> Load:
    return Load(0, 0, 0.0, 100.0, rate)


# What is told of a pick


def test_every_figure_of_a_pick() -> None:
    world = World("a", "b")
    world.store("a", "xy")
    world.load("a", Load(3, 2, 0.9, 400.0, 2000.0), age_s=1.5)
    world.load("b", Load(0, 0, 0.1, 200.0, 500.0))
    picked = world.pick("xyz", PickRequest(output_tokens=9))
    a, b = picked.reasons["a"], picked.reasons["b"]
    # 32 of 49 tokens are held; 2 x 400 wait, and delay three; half-way from 80 % to full costs a quarter of 2 s; 3 running, 10 steps.
    # The mean of 1.5 and four more make 3 / 5.5 of that. Each of the three is slowed by a fifth of
    # what it has to compute, and by 0.08 of what is queued.
    assert (a.matched_tokens, a.speculative_tokens, a.uncached_tokens, a.queued_tokens) == (32, 0, 17, 800)
    assert (a.running, a.waiting, a.kv_usage, a.load_age_s, a.trust, a.why, a.rank) == (3, 2, 0.9, 1.5, Trust.LIVE, None, 0)
    assert a.cost_s == pytest.approx((2.25 + 2 * 1.5 + 0.6) * 17 / 2000 + 1.24 * 800 / 2000 + 0.5 + 3 * 10 * 0.0001 + 3 / 5.5, abs=1e-6)
    assert b.cost_s == pytest.approx(2.25 * 49 / 500)
    assert (picked.order, picked.rank, picked.policy, picked.picked_for) == (["b", "a"], 0, "cost", "load")


def test_a_match_wins_until_its_queue_is_longer_than_what_it_saves() -> None:
    world = World("a", "b")
    world.store("a", "x" * 50)
    world.load("b", idle())
    for waiting, picked in ((0, "a"), (17, "a"), (19, "b")):
        world.now_s += 1
        world.load("b", idle())
        world.load("a", Load(0, waiting, 0.0, 100.0, 1000.0))
        assert world.pick("x" * 50).order[0] == picked, "800 tokens saved count for 1.8 s, as many as 18 prompts of 100 tokens take"


def test_a_burst_with_a_new_prefix_goes_to_one_of_the_idle_pods() -> None:
    """Eight prompts at once, whose first 1,000 tokens take a pod a second: computed once, not by each pod."""
    world = World(*"abcd")
    for pod in "abcd":
        world.load(pod, idle())
    assert len({world.pick([*"x" * 62, str(number)], EVERYTHING).order[0] for number in range(8)}) == 1


def test_a_slower_tier_costs_a_part_of_what_computing_costs() -> None:
    world = World("a", "b")
    world.store("a", "x" * 10)
    world.store("b", "x" * 10, tier=Tier.DISK)
    picked = world.pick("x" * 10)
    assert (picked.reasons["a"].matched_tokens, picked.reasons["b"].matched_tokens) == (160, 160)
    assert picked.reasons["a"].cost_s == pytest.approx(2.25 * 1 / 1000)
    assert picked.reasons["b"].cost_s == pytest.approx(2.25 * (1 + 80) / 1000)


# Who can be picked


def test_an_excluded_pod_is_never_picked_and_the_reason_says_so() -> None:
    world = World("a", "b", "c")
    world.store("a", "xyz")
    picked = world.pick("xyz", PickRequest(exclude=frozenset("a")))
    assert sorted(picked.order) == ["b", "c"]
    assert picked.reasons["a"].why == "excluded"


def test_an_expired_pod_is_never_picked() -> None:
    world = World("a", "b")
    world.view.set_trust(StreamKey("m", "a", 0), Trust.EXPIRED)
    picked = world.pick("x")
    assert (picked.order, picked.picked_for, picked.reasons["a"].why) == (["b"], "only_one", "expired")


def test_a_stale_pod_comes_after_all_others_whatever_it_holds() -> None:
    world = World("a", "b", "c")
    world.store("a", "xyz")
    world.view.set_trust(StreamKey("m", "a", 0), Trust.STALE)
    world.view.set_trust(StreamKey("m", "b", 0), Trust.PARTIAL)
    world.store("b", "x")
    picked = world.pick("xyz")
    assert (picked.order, picked.reasons["a"].why, picked.reasons["b"].why) == (["b", "c", "a"], "stale", None)
    picked = world.pick("xyz", PickRequest(exclude=frozenset("bc")))
    assert (picked.order, picked.picked_for) == (["a"], "stale")


def test_a_stream_that_no_owner_confirms_any_more_is_stale() -> None:
    world = World("a", "b")
    world.view.set_trust(StreamKey("m", "a", 0), Trust.LIVE, until_s=0.0)
    assert world.pick("x").order == ["b", "a"]


def test_where_no_pod_is_left_the_error_counts_why() -> None:
    world = World("a", "b", "c")
    world.view.set_trust(StreamKey("m", "b", 0), Trust.EXPIRED)
    with pytest.raises(NoPodError, match="no pod can be picked: 2 excluded, 1 expired"):
        world.pick("x", PickRequest(exclude=frozenset("ac")))
    with pytest.raises(NoPodError, match="there is none of those asked for"):
        world.pick("x", PickRequest(only=frozenset({"ghost"})))
    with pytest.raises(UnknownModelError):
        world.pick("x", model="ghost")
    assert world.router.requests == 0


def test_only_the_pods_asked_for_are_picked() -> None:
    world = World("a", "b", "c")
    world.store("a", "xyz")
    assert set(world.pick("xyz", PickRequest(only=frozenset("bc"))).order) == {"b", "c"}


# Ranks


def test_the_rank_that_holds_most_is_picked_but_not_a_stale_or_expired_one() -> None:
    world = World()
    for rank, trust in enumerate((Trust.LIVE, Trust.PARTIAL, Trust.STALE, Trust.EXPIRED)):
        world.open("a", rank, trust)
        world.store("a", "wxyz"[: rank + 1], rank)
    picked = world.pick("wxyz")
    assert (picked.rank, picked.reasons["a"].matched_tokens, picked.reasons["a"].trust) == (1, 32, Trust.PARTIAL)


def test_equal_ranks_are_filled_evenly() -> None:
    world = World()
    for rank in range(4):
        world.open("a", rank)
    assert Counter(world.pick([f"own {number}"]).rank for number in range(20)) == {0: 5, 1: 5, 2: 5, 3: 5}


# Load


def test_an_unknown_load_neither_draws_all_requests_nor_gets_none() -> None:
    """a is idle, c busy, of b nothing is known: it counts as the mean of both."""
    world = World("a", "b", "c")
    world.load("a", idle())
    world.load("c", Load(0, 4, 0.0, 100.0, 1000.0))
    picked = world.pick("x", SHORT)
    assert picked.order == ["a", "b", "c"]
    b = picked.reasons["b"]
    assert (b.queued_tokens, b.running, b.waiting, b.kv_usage, b.load_age_s) == (200, None, None, None, None)


def test_a_load_that_is_too_old_is_unknown() -> None:
    world = World("a", "b", load_max_age_s=5.0)
    world.load("a", idle(), age_s=5.1)
    world.load("b", Load(0, 4, 0.0, 100.0, 1000.0), age_s=4.9)
    a, b = (world.pick("x").reasons[pod] for pod in "ab")
    assert (a.queued_tokens, a.waiting, a.load_age_s) == (400, None, 5.1)
    assert (b.queued_tokens, b.waiting, b.load_age_s) == (400, 4, 4.9)


def test_what_was_sent_since_the_measurement_is_in_the_queue_until_it_is_measured_or_done() -> None:
    world = World("a", route_forget_s=10.0)
    world.load("a", idle())
    world.now_s += 0.5
    first, second = world.pick("x" * 10), world.pick("y" * 20)
    assert world.pick("").reasons["a"].queued_tokens == 161 + 321
    assert world.router.done(first.id)
    assert not world.router.done(first.id)
    assert world.pick("").reasons["a"].queued_tokens == 321 + 1
    world.now_s += 1
    world.load("a", Load(1, 3, 0.0, 100.0, 1000.0))
    assert world.pick("").reasons["a"].queued_tokens == 300, "the engine counts them now"
    assert world.router.done(second.id)


def test_what_nobody_told_to_be_done_counts_for_its_time() -> None:
    world = World("a", route_forget_s=10.0)
    world.pick("x" * 10)
    world.now_s += 9.9
    assert world.pick("").reasons["a"].queued_tokens == 161
    world.now_s += 0.1
    assert world.pick("").reasons["a"].queued_tokens == 1
    assert world.count("kv_indexer_route_forgotten_total", why="time") == 1


def test_what_was_sent_counts_until_the_pod_can_have_computed_it_though_its_figures_are_newer() -> None:
    """1,600 tokens at 1,000 a second: half of them after 0.8 s, whatever a measurement in between says of the queue."""
    world = World("a")
    world.load("a", idle())
    world.pick("x" * 100)
    world.now_s += 0.8
    world.load("a", idle())
    world.now_s += 0.15
    assert world.pick("").reasons["a"].queued_tokens == 1601 - 950
    world.now_s += 0.7
    assert world.pick("").reasons["a"].queued_tokens == 0, "that of the last pick too"


def test_a_prompt_that_its_pod_announces_is_computed_whatever_its_rate_says() -> None:
    """1,601 tokens take a pod 1.6 s at its rate, but its events are there after 0.2 s."""
    world = World("a")
    world.load("a", idle())
    world.pick("x" * 100)
    world.pick([*"x" * 99, "y"])
    world.now_s += 0.2
    assert world.pick("").reasons["a"].queued_tokens == 1601 + 17 - 200
    world.store("a", "x" * 100)
    assert world.pick("").reasons["a"].queued_tokens == 17, "that of the second prompt, whose prefix is expected"
    world.store("a", [*"x" * 99, "y"])
    assert world.pick("").reasons["a"].queued_tokens == 0


def test_requests_that_nothing_is_computed_for_spread_too() -> None:
    """All of the prompt is held everywhere: what is running decides, and what was sent since counts as running."""
    world = World("a", "b", "c")
    for pod in "abc":
        world.store(pod, "xyz")
        world.load(pod, idle())
    assert Counter(world.pick("xyz", EVERYTHING).order[0] for _ in range(30)) == {"a": 10, "b": 10, "c": 10}


# Ties


def test_replicas_with_the_same_data_do_not_all_pick_the_same_pod() -> None:
    view = View(Settings())
    World(*"abcd", view=view)
    picks = Counter(World(seed=None, view=view).pick("xyz").order[0] for _ in range(200))
    assert set(picks) == set("abcd")
    assert max(picks.values()) < 100


def test_the_same_seed_makes_the_same_picks() -> None:
    def orders(seed: int) -> list[list[str]]:
        world = World(*"abcd", seed=seed)
        return [world.pick(f"{number}").order for number in range(20)]

    assert orders(7) == orders(7)
    assert orders(7) != orders(8)


def test_turns_go_round_and_replicas_begin_at_different_pods() -> None:
    world = World(*"abc")
    turns = "".join(world.pick("x", PickRequest(policy="round-robin")).order[0] for _ in range(6))
    assert turns in ("abcabc", "bcabca", "cabcab")
    view = View(Settings())
    World(*"abc", view=view)
    assert {World(seed=None, view=view).pick("x", PickRequest(policy="round-robin")).order[0] for _ in range(50)} == set("abc")


# Sessions


def test_a_session_stays_on_every_replica_and_yields_when_its_pod_is_overloaded() -> None:
    world, other = World(*"abcd", seed=1), World(*"abcd", seed=2)
    request = PickRequest(policy="session", session_id="somebody")
    own = world.pick("x", request).order[0]
    assert {replica.pick(f"{number}", request).order[0] for replica in (world, other) for number in range(10)} == {own}
    for pod in "abcd":
        world.load(pod, Load(0, 30 if pod == own else 0, 0.0, 100.0, 1000.0))
    picked = world.pick("x", request)
    assert (picked.picked_for, picked.order[-1]) == ("session_yields", own)


def test_where_the_services_policy_is_session_one_without_an_id_goes_by_cost() -> None:
    world = World(*"ab", policy="session")
    assert world.pick("x").policy == "cost"
    assert world.pick("x", PickRequest(session_id="s")).policy == "session"


# Speculation


def burst(world: World, count: int, request: PickRequest = SHORT) -> Counter[str]:
    """Requests with the same new prefix of 100 blocks, each with a block of its own behind it, all at once."""
    return Counter(world.pick([*"p" * 100, f"own {number}"], request).order[0] for number in range(count))


def test_a_burst_with_the_same_new_prefix_does_not_spread() -> None:
    world = World(*"abcdefgh")
    assert len(burst(world, 30)) == 1
    spread = World(*"abcdefgh", route_speculative_s=0.0)
    assert len(burst(spread, 30)) == 8, "without speculation each pod computes it"


def test_a_burst_does_not_spread_before_any_pod_has_announced_a_block() -> None:
    world = World()
    for pod in "abcd":
        world.open(pod, block_size=None)
    assert len(burst(world, 10)) == 1


def test_what_is_expected_shows_in_the_pick_and_not_in_the_view() -> None:
    world = World("a", "b")
    first = world.pick("xyz").order[0]
    reason = world.pick("xyzw").reasons[first]
    assert (reason.matched_tokens, reason.speculative_tokens, reason.uncached_tokens) == (48, 48, 17)
    assert [score.ranks[0].match.matched_blocks for score in world.view.score(prompt("xyzw"))] == [0, 0]
    ignoring = world.pick("xyzw", PickRequest(include_speculative=False)).reasons[first]
    assert (ignoring.matched_tokens, ignoring.speculative_tokens) == (0, 0)


def test_the_last_token_is_never_expected_either() -> None:
    world = World("a")
    world.pick("xyz")
    whole = world.router.pick(Prompt("m", tokens("xyz")), SHORT, world.now_s).reasons["a"]
    assert whole.matched_tokens == 32


def test_what_is_expected_of_groups_of_different_sizes_ends_where_a_hit_can() -> None:
    """A window group of 16-token blocks and a full one of 32-token blocks: of 81 tokens 64 can be a hit, and their events end the expectation."""
    shape = CacheShape(SIZE, (Group(0, Kind.WINDOW, SIZE, 2 * SIZE), Group(1, Kind.FULL, 2 * SIZE)))
    world = World()
    world.open("a", block_size=None)
    store_in_groups(world, shape, ["a block of its own", "and another"])
    world.pick("vwxyz")
    reason = world.pick("vwxyz").reasons["a"]
    assert (reason.matched_tokens, reason.speculative_tokens, reason.uncached_tokens) == (64, 64, 17)
    scores, beyond = world.router.score(prompt("vwxyz"), None, world.now_s)
    assert (scores[0].ranks[0].match.matched_blocks, scores[0].ranks[0].score, beyond) == (2, 64 / 80, {("a", 0): 2})
    assert world.pick("vwxq").reasons["a"].speculative_tokens == 32, "a hit ends at 32 or at 64 tokens, not at 48"
    world.router.expire(world.now_s + 2.0)
    world.pick("vwxyz")
    store_in_groups(world, shape, "vwxy")
    assert len(world.router.speculation) == 0
    reason = world.pick("vwxyz").reasons["a"]
    assert (reason.matched_tokens, reason.speculative_tokens, len(world.router.speculation)) == (64, 0, 0)


def store_in_groups(world: World, shape: CacheShape, letters: Iterable[str]) -> None:
    """All groups announce the blocks of pod `a`."""
    change = Change()
    held = dict.fromkeys(keys(letters), True)
    change.touched[Tier.GPU].update(held)
    change.touched_of(1)[Tier.GPU].update(held)
    world.view.append(StreamKey("m", "a", 0), shape, change)


def test_what_is_expected_of_an_engine_that_hashes_pairs_ends_with_its_events() -> None:
    """The key of each block takes in the token behind it."""
    shape = CacheShape(SIZE, lookahead=1)
    own_keys = chain_keys(root_key("m", None, ""), prompt("xyz").tokens, SIZE, lookahead=1)
    world = World()
    world.open("a", block_size=None)
    change = Change()
    change.touched[Tier.GPU][1] = True
    world.view.append(StreamKey("m", "a", 0), shape, change)
    world.pick("xyz")
    assert world.pick("xyz").reasons["a"].speculative_tokens == 48
    assert world.pick("xyw").reasons["a"].speculative_tokens == 16, "the second block is followed by another token"
    change = Change()
    change.touched[Tier.GPU].update(dict.fromkeys(own_keys, True))
    world.view.append(StreamKey("m", "a", 0), shape, change)
    reason = world.pick("xyz").reasons["a"]
    assert (reason.matched_tokens, reason.speculative_tokens) == (48, 0)


def test_scores_show_what_is_expected_where_that_is_asked_for() -> None:
    world = World("a", "b")
    world.store("b", "x")
    picked = world.pick("xyz", PickRequest(only=frozenset("a"), output_tokens=1)).order[0]
    scores, beyond = world.router.score(prompt("xyz"), None, world.now_s)
    assert picked == "a"
    assert [(score.pod, score.ranks[0].match.matched_blocks, score.ranks[0].score) for score in scores] == [("a", 3, 1.0), ("b", 1, 16 / 48)]
    assert beyond == {("a", 0): 3}


def test_events_end_what_is_expected() -> None:
    world = World("a")
    world.pick("xyz")
    world.store("a", "xyz")
    assert len(world.router.speculation) == 0
    world.store("a", "xyz", held=False)
    assert world.pick("xyz").reasons["a"].matched_tokens == 0, "it came and was evicted: nothing is expected any more"


def test_what_is_held_to_its_end_is_not_expected() -> None:
    world = World("a")
    world.store("a", "xyz")
    world.pick("xyz")
    assert len(world.router.speculation) == 0


def test_one_request_that_is_done_takes_nothing_from_another() -> None:
    world = World("a")
    first, _ = world.pick("xyz"), world.pick("xyz")
    world.router.done(first.id)
    assert world.pick("xyzw").reasons["a"].speculative_tokens == 48
    world.now_s += 2.0
    assert world.pick("xyzw").reasons["a"].speculative_tokens == 0


@pytest.mark.parametrize("end", ["drop", "close", "reload"])
def test_an_engine_that_restarts_or_goes_is_expected_to_hold_nothing(end: str) -> None:
    world = World("a", "b")
    world.pick("xyz", PickRequest(only=frozenset("a")))
    stream = StreamKey("m", "a", 0)
    if end == "reload":
        change = Change()
        change.reload = True
        world.view.append(stream, CacheShape(SIZE), change)
    else:
        getattr(world.view, end)(stream)
    assert len(world.router.speculation) == 0


def test_lora_adapters_and_salts_share_nothing() -> None:
    world = World("a")
    world.pick("xyz")
    for other in (Prompt("m", tokens("xyzw"), "adapter"), Prompt("m", tokens("xyzw"), None, {0: b"salt"})):
        assert world.router.pick(other, SHORT, world.now_s).reasons["a"].speculative_tokens == 0


def test_what_came_of_a_prompts_blocks_is_counted() -> None:
    """Of five blocks two were held, and one of these is evicted; of the three new ones one is announced within the time."""
    world = World("a")
    world.store("a", "vw")
    world.pick("vwxyz")
    second, third = keys("vwx")[1:]
    change = Change()
    change.touched[Tier.GPU].update({second: False, third: True})
    world.view.append(StreamKey("m", "a", 0), CacheShape(SIZE), change)
    world.now_s += 2.0
    world.router.expire(world.now_s)
    counted = {outcome: world.count("kv_indexer_route_blocks_total", outcome=outcome) for outcome in ("matched_held", "matched_gone")}
    assert counted == {"matched_held": 1, "matched_gone": 1}
    counted = {outcome: world.count("kv_indexer_route_blocks_total", outcome=outcome) for outcome in ("new_announced", "new_unseen")}
    assert counted == {"new_announced": 1, "new_unseen": 2}


# Herding


def test_the_longest_match_alone_herds_and_the_cost_does_not() -> None:
    """Every prompt begins with the same 64 blocks, which a alone has seen, and goes on with 20 of its own. 2,140 tokens/s are new, a pod does 1,000.
    By prefix alone all go to a, whose queue grows without end; by cost others get theirs as soon as a's queue is longer than what it saves.
    """

    def run(policy: PolicyName) -> tuple[Counter[str], float]:
        world = World(*"abcd", policy=policy)
        world.store("a", "s" * 64)
        queues = dict.fromkeys("abcd", 0.0)
        picks: Counter[str] = Counter()
        longest = 0.0
        for number in range(200):
            for pod, queue in queues.items():
                world.load(pod, Load(1, int(queue / 321), 0.0, 321.0, 1000.0))
            letters = [*"s" * 64, *(f"{number} {block}" for block in range(20))]
            picked = world.pick(letters)
            pod = picked.order[0]
            picks[pod] += 1
            queues[pod] += picked.reasons[pod].uncached_tokens
            longest = max(longest, queues[pod])
            world.store(pod, letters)
            world.now_s += 0.15
            queues = {pod: max(0.0, queue - 150) for pod, queue in queues.items()}
        return picks, longest

    herded, queue_herded = run("prefix")
    spread, queue_spread = run("cost")
    assert herded == {"a": 200}
    assert queue_herded > 30_000
    assert len(spread) >= 3
    assert queue_spread < 4_000


# Whatever comes

trusts = st.sampled_from([Trust.LIVE, Trust.PARTIAL, Trust.STALE, Trust.EXPIRED])
loads = st.none() | st.builds(
    Load, st.integers(0, 500), st.integers(0, 500), st.none() | st.floats(), st.none() | st.floats(), st.none() | st.floats()
)


@given(
    st.lists(st.tuples(trusts, loads, st.floats(0, 20)), min_size=1, max_size=5),
    st.sets(st.sampled_from("01234")),
    st.sampled_from(POLICY_NAMES),
    st.lists(st.integers(0, 6), max_size=6),
    st.integers(0, 9),
)
def test_no_excluded_or_expired_pod_is_ever_in_the_order_and_a_stale_one_only_last(
    pods: list[tuple[Trust, Load | None, float]], exclude: set[str], policy: str, depths: list[int], seed: int
) -> None:
    world = World(seed=seed)
    for number, (trust, load, age_s) in enumerate(pods):
        world.open(str(number), trust=trust)
        if load is not None:
            world.load(str(number), load, age_s)
    request = PickRequest(exclude=frozenset(exclude), policy=policy, session_id="s")  # type: ignore[arg-type]
    allowed = {str(number): trust for number, (trust, _, _) in enumerate(pods) if trust is not Trust.EXPIRED and str(number) not in exclude}
    for depth in depths:
        if not allowed:
            with pytest.raises(NoPodError):
                world.pick("x" * depth, request)
            continue
        order = world.pick("x" * depth, request).order
        assert sorted(order) == sorted(allowed)
        is_stale = [allowed[pod] is Trust.STALE for pod in order]
        assert is_stale == sorted(is_stale)
