"""What late and lost events, old loads, several routers, and pods that restart, come, go or are slow cost."""

from collections.abc import Sequence

from bench.fleet.charts import Chart
from bench.fleet.report import Section, Table
from bench.fleet.runs import SEEDS, Case, Player
from bench.fleet.scenarios import CHAT, HOT, LADDER, ONE_PROMPT, PODS, ZIPF, Scenario
from scorer_api.fleet.fleet import Conditions
from scorer_api.fleet.results import RunResult, merged

DELAYS_S = (0.0, 0.1, 0.5, 1.0, 2.0)
LOSSES = (0.0, 0.01, 0.02, 0.05)
POLICIES = ("cost", "weighted-scorers")
ROUTERS = 4
SLOW = 2.0

TROUBLES: tuple[tuple[str, Conditions, int], ...] = (
    ("nothing wrong", Conditions(), 1),
    ("two pods restart", Conditions(restarts=((30.0, 0), (50.0, 1))), 1),
    ("all pods restart, one after the other", Conditions(restarts=tuple((10.0 + 6.0 * pod, pod) for pod in range(PODS))), 1),
    ("a pod joins after 30 s", Conditions(joins=((30.0, 0),)), 1),
    ("a pod leaves after 30 s", Conditions(leaves=((30.0, 0),)), 1),
    ("a pod takes twice as long", Conditions(slow_pods=((0, SLOW),)), 1),
    ("loads are 5 s old", Conditions(load_age_s=5.0), 1),
    ("four routers", Conditions(), ROUTERS),
)


def measure(play: Player) -> Section:
    """Troubles by policy, events late and lost, several routers, and how far a hot prefix spreads."""
    tables = [_troubles(play, CHAT), _troubles(play, ZIPF), *_events(play, CHAT), _routers(play), _hot(play)]
    about = "The chats and the Zipf prefixes of the table of policies, with what goes wrong in production. Times are means to the first token."
    return Section("Adversity", about, tables, [_delay_chart(play)])


def _troubles(play: Player, scenario: Scenario) -> Table:
    cases = [Case(scenario, policy, routers=routers, conditions=conditions) for _, conditions, routers in TROUBLES for policy in POLICIES]
    results = iter(play(f"{scenario.name}: troubles", cases))
    rows = []
    for name, conditions, _ in TROUBLES:
        each = [next(results) for _ in POLICIES]
        share = f"{100 * each[0].pod_requests[0] / sum(each[0].pod_requests):.0f} %" if conditions.slow_pods else ""
        rows.append([name, *(f"{result.ttft_mean_s:.2f} s, {result.tokens_per_s:,.0f} tokens/s" for result in each), share])
    return Table(f"{scenario.about}: what goes wrong", ["", *(f"`{name}`" for name in POLICIES), "slow pod's requests"], rows)


def _events(play: Player, scenario: Scenario) -> list[Table]:
    delays = [Case(scenario, "cost", conditions=Conditions(event_delay_s=delay)) for delay in DELAYS_S]
    losses = [Case(scenario, "cost", conditions=Conditions(event_loss=loss)) for loss in LOSSES]
    results = iter(play("events", [*delays, *losses]))
    head = ["", "TTFT mean, s", "TTFT p90, s", "tokens/s", "cached, %", "expected and not cached, %"]
    return [
        Table(f"{scenario.about}: events that come late", head, [[f"{delay:g} s", *_figures(next(results))] for delay in DELAYS_S]),
        Table(
            f"{scenario.about}: events that are lost until the next one", head, [[f"{100 * loss:g} %", *_figures(next(results))] for loss in LOSSES]
        ),
    ]


def _delay_chart(play: Player) -> Chart:
    results = play("events", [Case(CHAT, "cost", conditions=Conditions(event_delay_s=delay)) for delay in DELAYS_S])
    series = {"cost": [(delay, 1000 * result.ttft_mean_s) for delay, result in zip(DELAYS_S, results, strict=True)]}
    return Chart("event-delay", "What late events cost", "delay of events, s", "mean time to first token, ms", series)


def _figures(result: RunResult) -> Sequence[str]:
    return (
        f"{result.ttft_mean_s:.3f}",
        f"{result.ttft_at_s(0.9):.3f}",
        f"{result.tokens_per_s:,.0f}",
        f"{100 * result.hit_share:.1f}",
        f"{100 * result.lost_share:.2f}",
    )


def _routers(play: Player) -> Table:
    scenarios = (LADDER, CHAT, ZIPF, ONE_PROMPT)
    cases = [Case(scenario, "cost", seed, routers) for scenario in scenarios for routers in (1, ROUTERS) for seed in SEEDS]
    results = iter(play("routers", cases))
    rows = []
    for scenario in scenarios:
        one, four = (merged([next(results) for _ in SEEDS]) for _ in range(2))
        change = f"{100 * (four.tokens_per_s / one.tokens_per_s - 1):+.1f} %"
        rows.append(
            [scenario.name, f"{one.ttft_mean_s:.2f}", f"{four.ttft_mean_s:.2f}", f"{one.tokens_per_s:,.0f}", f"{four.tokens_per_s:,.0f}", change]
        )
    head = ["", "TTFT, one router", "four routers", "tokens/s, one router", "four routers", "throughput"]
    return Table("Four routers that do not know of each other's picks, `cost`", head, rows)


def _hot(play: Player) -> Table:
    """The prefix that half of all requests have, in the later half of the run."""
    results = play("hot", [Case(HOT, policy) for policy in POLICIES])
    rows = []
    for policy, result in zip(POLICIES, results, strict=True):
        sent = sum(result.user_pods)
        rows.append([f"`{policy}`", f"{sum(20 * each >= sent for each in result.user_pods)}", f"{result.imbalance:.2f}", f"{result.ttft_mean_s:.2f}"])
    return Table("Pods that get a twentieth or more of the hot prefix's requests", ["policy", "pods", "busiest pod to mean", "TTFT mean, s"], rows)
