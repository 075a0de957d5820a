"""Every policy on every workload."""

from collections.abc import Callable, Sequence
from statistics import geometric_mean

from bench.fleet.charts import Chart
from bench.fleet.report import Section, Table
from bench.fleet.runs import SEEDS, Case, Player
from bench.fleet.scenarios import LADDER, Scenario
from scorer_api.fleet.policies import BASELINES
from scorer_api.fleet.results import RunResult, merged

OURS = "cost"
POLICIES = (OURS, "round-robin", *BASELINES)
Results = dict[tuple[str, str], RunResult]
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def measure(play: Player, scenarios: Sequence[Scenario], policies: Sequence[str] = POLICIES) -> Section:
    """Tables of time to first token, throughput, hits and imbalance, over all seeds."""
    pairs = [(scenario, policy) for scenario in scenarios for policy in policies]
    played = iter(play("policies", [Case(scenario, policy, seed) for scenario, policy in pairs for seed in SEEDS]))
    results = {(scenario.name, policy): merged([next(played) for _ in SEEDS]) for scenario, policy in pairs}
    figures: tuple[tuple[str, Callable[[RunResult], str]], ...] = (
        ("Mean time to first token, s", lambda result: f"{result.ttft_mean_s:.2f}"),
        ("Time to first token of nine in ten, s", lambda result: f"{result.ttft_at_s(0.9):.2f}"),
        ("Output tokens/s", lambda result: f"{result.tokens_per_s:,.0f}"),
        ("Prompt tokens from the caches, %", lambda result: f"{100 * result.hit_share:.1f}"),
        ("Work of the busiest pod, to the mean", lambda result: f"{result.imbalance:.2f}"),
    )
    tables = [_table(title, scenarios, policies, results, figure) for title, figure in figures]
    if OURS in policies and len(policies) > 1:
        tables[:0] = [_against_best(scenarios, policies, results), _over_all(scenarios, policies, results)]
    about = (
        "; ".join(f"{scenario.name}: {scenario.about}" for scenario in scenarios)
        + f". A workload's own best baseline changes from column to column. Each figure is of {len(SEEDS)} runs with seeds of their own."
    )
    return Section("Policies", about, tables, [_percentiles(policies, results)] if (LADDER.name, OURS) in results else [])


def _table(title: str, scenarios: Sequence[Scenario], policies: Sequence[str], results: Results, figure: Callable[[RunResult], str]) -> Table:
    head = ["policy", *(scenario.name for scenario in scenarios)]
    return Table(title, head, [[f"`{name}`", *(figure(results[scenario.name, name]) for scenario in scenarios)] for name in policies])


def _against_best(scenarios: Sequence[Scenario], policies: Sequence[str], results: Results) -> Table:
    """`cost` beside the best of all others, which is another one for each workload and figure."""
    others = [name for name in policies if name != OURS]
    best_ttft, ttft, best_rate, rate = [], [], [], []
    for scenario in scenarios:
        ours = results[scenario.name, OURS]
        name = min(others, key=lambda name: results[scenario.name, name].ttft_mean_s)
        best_ttft.append(f"`{name}`")
        ttft.append(f"{100 * (ours.ttft_mean_s / results[scenario.name, name].ttft_mean_s - 1):+.0f} %")
        name = max(others, key=lambda name: results[scenario.name, name].tokens_per_s)
        best_rate.append(f"`{name}`")
        rate.append(f"{100 * (ours.tokens_per_s / results[scenario.name, name].tokens_per_s - 1):+.1f} %")
    rows = [["mean time to first token", *ttft], ["… than", *best_ttft], ["output tokens/s", *rate], ["… than", *best_rate]]
    return Table("`cost` against the best of all others", ["", *(scenario.name for scenario in scenarios)], rows)


def _over_all(scenarios: Sequence[Scenario], policies: Sequence[str], results: Results) -> Table:
    """Each policy's figures to those of `cost`, as geometric means over the workloads."""
    rows = []
    for name in policies:
        pairs = [(results[scenario.name, name], results[scenario.name, OURS]) for scenario in scenarios]
        ttft, worst = (
            geometric_mean(theirs.ttft_mean_s / ours.ttft_mean_s for theirs, ours in pairs),
            max(
                theirs.ttft_mean_s / min(results[scenario.name, each].ttft_mean_s for each in policies)
                for (theirs, _), scenario in zip(pairs, scenarios, strict=True)
            ),
        )
        rate = geometric_mean(theirs.tokens_per_s / ours.tokens_per_s for theirs, ours in pairs)
        rows.append([f"`{name}`", f"{ttft:.2f}", f"{rate:.2f}", f"{worst:.1f}"])
    head = ["policy", "time to first token", "tokens/s", "worst time, to the best policy's"]
    return Table("Over all workloads, `cost` being 1 (geometric means)", head, rows)


def _percentiles(policies: Sequence[str], results: Results) -> Chart:
    shown = [name for name in (OURS, "weighted-scorers", "affinity-filter", "approximate", "round-robin") if name in policies]
    series = {name: [(100 * share, results[LADDER.name, name].ttft_at_s(share)) for share in SHARES] for name in shown}
    return Chart("ttft-percentiles", "Time to first token, rising load", "percentile of requests", "seconds", series, is_log=True)
