"""What a fleet does as more is asked of it."""

from functools import partial

from bench.fleet.charts import Chart
from bench.fleet.report import Section, Table
from bench.fleet.runs import Case, Player
from bench.fleet.scenarios import Scenario
from scorer_api.fleet.workloads import shared_prefixes

POLICIES = ("cost", "weighted-scorers", "round-robin")
RATES = (4, 8, 12, 16, 20, 24, 28, 40)
SECONDS = 40.0
ANSWER = 600


def at_rate(rate: float) -> Scenario:
    """150 prefixes at a steady rate."""
    workload = partial(shared_prefixes, [(rate, SECONDS)], groups=150, prompts=0, prefix=6_000, question=1_200, answer=ANSWER)
    return Scenario(f"{rate:g}/s", "150 prefixes of 6,000 tokens at a steady rate", workload)


def measure(play: Player) -> Section:
    """Throughput, time to first token, hits and imbalance by the offered load."""
    cases = [Case(at_rate(rate), policy) for policy in POLICIES for rate in RATES]
    results = {(case.policy, case.scenario.name): result for case, result in zip(cases, play("load", cases), strict=True)}
    series = {policy: [(float(rate), results[policy, f"{rate:g}/s"]) for rate in RATES] for policy in POLICIES}
    x = "requests per second"
    charts = [
        Chart(
            "throughput", "Throughput against offered load", x, "output tokens/s", {n: [(r, e.tokens_per_s) for r, e in s] for n, s in series.items()}
        ),
        Chart(
            *("ttft", "Mean time to first token against offered load", x, "seconds"),
            {name: [(rate, result.ttft_mean_s) for rate, result in each] for name, each in series.items()},
            is_log=True,
        ),
        Chart(
            "hits", "Hit rate against offered load", x, "% of prompt tokens", {n: [(r, 100 * e.hit_share) for r, e in s] for n, s in series.items()}
        ),
        Chart(
            "imbalance", "Imbalance against offered load", x, "busiest pod to mean", {n: [(r, e.imbalance) for r, e in s] for n, s in series.items()}
        ),
    ]
    head = ["policy", *(f"{rate:g}/s" for rate in RATES)]
    tables = [
        Table("Mean time to first token, s", head, [[f"`{n}`", *(f"{e.ttft_mean_s:.2f}" for _, e in s)] for n, s in series.items()]),
        Table("Output tokens/s", head, [[f"`{n}`", *(f"{e.tokens_per_s:,.0f}" for _, e in s)] for n, s in series.items()]),
    ]
    about = f"150 prefixes of 6,000 tokens, 1,200 more of each prompt, answers of {ANSWER}, at a steady rate for {SECONDS:g} s."
    return Section("Load", about, tables, charts)
