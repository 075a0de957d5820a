"""How many users a fleet serves within a service level, nine in ten first tokens within a second; and what policies do as caches become too small."""

from functools import partial
from itertools import pairwise

from bench.fleet.charts import Chart
from bench.fleet.report import Section, Table
from bench.fleet.runs import SEEDS, Case, Player
from bench.fleet.scenarios import Scenario, chats
from scorer_api.fleet.results import merged
from scorer_api.fleet.workloads import Chats, ChatShape

POLICIES = ("cost", "weighted-scorers", "affinity-filter", "round-robin")
USERS = (32, 64, 128, 192, 256, 384, 512, 640)
SHAPE = ChatShape(system=1_000, first=8_000, more=150, answer=200, turns=20, think_s=10.0)
SECONDS = 100.0
LEVEL_S = 1.0
SHARE = 0.9
# The best ones near the limit.
SHORT_POLICIES = ("cost", "affinity-filter", "batch-product", "overlap-cost", "session-hash")
SHORT_USERS = (400, 440, 480, 520, 560)


def chatting(users: int) -> Scenario:
    """So many users with long contexts."""
    return Scenario(f"{users} users", "long chats", partial(Chats, users, SHAPE, SECONDS))


def measure(play: Player) -> Section:
    """Time to first token by the number of users, and the highest number within the level."""
    cases = [Case(chatting(users), policy) for policy in POLICIES for users in USERS]
    played = iter(play("users", cases))
    series = {policy: [(float(users), next(played).ttft_at_s(SHARE)) for users in USERS] for policy in POLICIES}
    rows = [[f"`{name}`", *(f"{seconds:.2f}" for _, seconds in each), f"{users_within(each, LEVEL_S):.0f}"] for name, each in series.items()]
    head = ["policy", *(f"{users}" for users in USERS), "users within 1 s"]
    about = (
        f"Users in chats that begin with {SHAPE.first:,} tokens of their own behind {SHAPE.system:,} that all share, {SHAPE.turns} turns, "
        f"{SHAPE.think_s:g} s of thinking on average. The last column is where the line crosses {LEVEL_S:g} s."
    )
    chart = Chart("users", "Nine in ten first tokens, by users", "users", "seconds", series, is_log=True)
    tables = [Table("Time to first token of nine in ten, s, by users", head, rows), _short_chats(play)]
    return Section("Users within the service level", about, tables, [chart])


def _short_chats(play: Player) -> Table:
    cases = [Case(chats(users), policy, seed) for policy in SHORT_POLICIES for users in SHORT_USERS for seed in SEEDS]
    played = iter(play("short chats", cases))
    rows = []
    for policy in SHORT_POLICIES:
        results = [merged([next(played) for _ in SEEDS]) for _ in SHORT_USERS]
        rows.append([f"`{policy}`", *(f"{result.ttft_mean_s:.2f} s, {result.tokens_per_s:,.0f}" for result in results)])
    return Table("Chats of six turns: mean time to first token and tokens/s, by users", ["policy", *map(str, SHORT_USERS)], rows)


def users_within(points: list[tuple[float, float]], level_s: float) -> float:
    """Up to how many users the time stays within the level, between two points on the line that joins them."""
    if points[0][1] > level_s:
        return 0.0
    for (before, low), (after, high) in pairwise(points):
        if high > level_s:
            return before + (after - before) * (level_s - low) / (high - low)
    return points[-1][0]
