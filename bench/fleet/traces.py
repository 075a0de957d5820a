"""Recorded prompts: what the routers take from the caches, beside what caches of this size could give."""

from collections.abc import Sequence
from statistics import fmean

from bench.fleet.report import Section, Table
from bench.fleet.runs import SEED, SEEDS, Case, Player
from bench.fleet.scenarios import PODS, Scenario
from scorer_api.fleet.bounds import belady, pooled_lru

POLICIES = ("cost", "weighted-scorers", "affinity-filter", "approximate", "round-robin")


def measure(play: Player, scenarios: Sequence[Scenario]) -> Section:
    """Hit rates of these traces."""
    results = iter(play("traces", [Case(scenario, policy, seed) for scenario in scenarios for policy in POLICIES for seed in SEEDS]))
    rows = []
    for scenario in scenarios:
        requests, size = scenario.workload(seed=SEED).first(), scenario.model.block_size
        blocks = PODS * (scenario.model.kv_tokens // size)
        lru, best = pooled_lru(requests, blocks, size), belady(requests, blocks, size)
        hits = [fmean(next(results).hit_share for _ in SEEDS) for _ in POLICIES]
        rows.append([scenario.name, *(f"{100 * share:.1f}" for share in (*hits, lru, best)), f"{100 * hits[0] / lru:.1f} %" if lru else ""])
    head = ["", *(f"`{name}`" for name in POLICIES), "one pooled cache", "Belady's bound", "`cost` to pooled"]
    about = (
        "Prompt tokens from the caches. The pooled cache has the fleet's size and evicts what was used longest ago; Belady's bound knows the future. "
        + "; ".join(f"{scenario.name}: {scenario.about}" for scenario in scenarios)
    )
    return Section("Recorded prompts", about + ".", [Table("Prompt tokens from the caches, %", head, rows)])
