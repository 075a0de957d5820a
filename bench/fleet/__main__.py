"""`python -m bench.fleet`: every policy on every workload, as two tables in Markdown."""

import argparse
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench.fleet.scenarios import PODS, SCENARIOS, Scenario, of_trace
from scorer_api.fleet.fleet import Fleet
from scorer_api.fleet.policies import BASELINES, ROUTERS
from scorer_api.fleet.results import RunResult, result_of

POLICIES = ("cost", "round-robin", *BASELINES)
TRACE_CACHES = (300_000, 3_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trace", type=Path, action="append", default=[], help="a trace in Mooncake's format; may be given several times")
    parser.add_argument("--requests", type=int, default=1_200, help="of a trace (default: %(default)s)")
    parser.add_argument("--policies", default=",".join(POLICIES))
    parsed = parser.parse_args()
    names = parsed.policies.split(",")
    scenarios = scenarios_with(parsed.trace, parsed.requests)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = {
            (one.name, name): pool.submit(played, number, name, parsed.seed, parsed.trace, parsed.requests)
            for number, one in enumerate(scenarios)
            for name in names
        }
        results = {}
        for done, (key, run) in enumerate(runs.items(), 1):
            results[key] = run.result()
            sys.stderr.write(f"\r{done} of {len(runs)} runs")
    sys.stderr.write("\n")
    for title, figure in (("Mean time to first token, s", ttft), ("Output tokens/s", throughput)):
        sys.stdout.write(f"\n{title}\n\n{markdown(scenarios, names, results, figure)}\n")


def scenarios_with(traces: list[Path], requests: int) -> list[Scenario]:
    """All scenarios, and these traces with small and with large caches."""
    return [*SCENARIOS, *(of_trace(path, tokens, requests) for path in traces for tokens in TRACE_CACHES)]


def played(number: int, policy: str, seed: int, traces: list[Path], requests: int) -> RunResult:
    """One run, in a process of its own."""
    scenario = scenarios_with(traces, requests)[number]
    router = ROUTERS[policy](PODS, scenario.model, seed)
    return result_of(Fleet(PODS, scenario.model, [router], scenario.workload(seed), seed=seed).run(), PODS)


def ttft(result: RunResult) -> str:
    return f"{result.ttft_mean_s:.2f}"


def throughput(result: RunResult) -> str:
    return f"{result.tokens_per_s:,.0f}"


def markdown(scenarios: list[Scenario], names: list[str], results: dict[tuple[str, str], RunResult], figure: Callable[[RunResult], str]) -> str:
    """Policies by scenarios."""
    head = ["policy", *(scenario.name for scenario in scenarios)]
    rows = [[f"`{name}`", *(figure(results[scenario.name, name]) for scenario in scenarios)] for name in names]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * len(scenarios)], *rows))


if __name__ == "__main__":
    main()
