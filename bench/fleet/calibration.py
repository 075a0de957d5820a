"""The simulated pods beside published measurements of real ones.

llm-d published what four ways of routing gave on 8 pods of 2 H100s with Qwen3-32B, and the prefill rate and the size of the caches. The pods of this
simulation were fitted to those. A second publication, 4 pods of 4 H100s with Llama-70B, checks them: its pods follow from the first ones by the bytes
and the operations per GPU, and nothing was fitted.

Both came in stages of rising rates. How long a stage and the pause behind it were is not said. Here a stage has 20 s, and goes on until the last
answer. The pause behind each, 30 s and none, is what makes the first row's throughput the published one. A later guide published the first fleet
once more, with all its stages and a better router; its throughput says that there were no pauses.
"""

from functools import partial

from msgspec import Struct

from bench.fleet.report import Section, Table
from bench.fleet.runs import Case, Player
from bench.fleet.scenarios import H100_PAIR, Scenario
from scorer_api.fleet.pod import PodModel
from scorer_api.fleet.workloads import Rounds, shared_prefixes

STAGE_S = 20.0


class Published(Struct, frozen=True):
    """A row of a publication. `policy`: the one of ours that does what it describes. `ttft_s`: the mean, or of nine in ten where `is_p90`; None if it
    was not published."""

    name: str
    policy: str
    tokens_per_s: float
    ttft_s: float | None = None
    is_p90: bool = False


def _rounds(rates: tuple[float, ...], groups: int, prompts: int, prefix: int, question: int, answer: int, pause_s: float, *, seed: int) -> Rounds:
    make = partial(shared_prefixes, groups=groups, prompts=prompts, prefix=prefix, question=question, answer=answer)
    return Rounds([make([(rate, STAGE_S)], seed=1_000 * seed + number) for number, rate in enumerate(rates)], pause_s)


ALL_RATES = (3, 10, 15, 20, 22, 25, 30, 35, 40, 43, 46, 49, 52, 55, 57, 60)
# Of the published rates every third: the mean rate is the same.
FIT = Scenario("fit", "8 pods of 2 H100s, Qwen3-32B", partial(_rounds, (3, 20, 30, 43, 52, 60), 150, 5, 6_000, 1_200, 1_000, 30.0))
FIT_PUBLISHED = (
    Published("precise", "cost", 8_730, 0.298),
    Published("estimated", "approximate", 6_944, 13.3),
    Published("random", "random", 4_429, 45.3),
    Published("load", "least-waiting", 4_266, 47.0),
)
# Llama-70B has 1.1 times the operations and the weights per GPU of Qwen3-32B on two, and 0.62 times the bytes of context.
H100_QUAD = PodModel(
    461_376, prefill_tokens_per_s=H100_PAIR.prefill_tokens_per_s / 1.1, step_s=1.1 * H100_PAIR.step_s, context_s=0.62 * H100_PAIR.context_s
)
CHECK = Scenario("check", "4 pods of 4 H100s, Llama-70B", partial(_rounds, (3, 8, 14, 20), 83, 3, 8_000, 1_000, 1_000, 0.0), H100_QUAD)
CHECK_PUBLISHED = (
    Published("precise", "cost", 5_650, 0.275, True),
    Published("default", "weighted-scorers", 5_096, 7.5, True),
    Published("load", "least-waiting", 3_018, 78.0, True),
    Published("random", "random", 2_895, 85.0, True),
)
LATER = Scenario("later", "8 pods of 2 H100s, Qwen3-32B, all stages", partial(_rounds, ALL_RATES, 150, 5, 6_000, 1_200, 1_000, 0.0))
LATER_PUBLISHED = (
    Published("precise", "cost", 12_598),
    Published("optimized approximate", "approximate", 13_163),
    Published("round-robin", "round-robin", 5_722, 58.0),
)


def measure(play: Player) -> Section:
    """The publications, row by row."""
    publications = ((FIT, FIT_PUBLISHED, 8), (CHECK, CHECK_PUBLISHED, 4), (LATER, LATER_PUBLISHED, 8))
    results = iter(play("calibration", [Case(scenario, row.policy, pods=pods) for scenario, rows, pods in publications for row in rows]))
    tables = []
    for scenario, published, _ in publications:
        rows = []
        for row in published:
            result = next(results)
            seconds = result.ttft_at_s(0.9) if row.is_p90 else result.ttft_mean_s
            measured = f"{row.tokens_per_s:,.0f}", f"{result.tokens_per_s:,.0f}", "" if row.ttft_s is None else f"{row.ttft_s:.2f}", f"{seconds:.2f}"
            rows.append([row.name, f"`{row.policy}`", *measured])
        time = "TTFT p90, s" if published[0].is_p90 else "TTFT mean, s"
        head = ["published as", "simulated as", "tokens/s published", "simulated", f"{time}, published", "simulated"]
        tables.append(Table(f"{scenario.name.capitalize()}: {scenario.about}", head, rows))
    about = (
        "What llm-d published of real pods, beside the simulation. The pods were fitted to the first table; the others were not fitted. "
        f"Stages of {STAGE_S:g} s, each until the last answer; the pauses between them, 30 s and none, follow from the first rows' throughput."
    )
    return Section("Calibration", about, tables)
