"""`kv-indexer simulate`: what routing policies would do to a fleet, in virtual time and without an engine."""

import argparse
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from indexer.errors import SettingError
from scorer_api.cli.argument_types import positive
from scorer_api.cli.text_table import table
from scorer_api.fleet.fleet import Conditions, Fleet, Workload
from scorer_api.fleet.pod import PodModel, PromptTooLongError
from scorer_api.fleet.policies import ROUTERS
from scorer_api.fleet.results import RunResult, result_of
from scorer_api.fleet.workloads import Chats, ChatShape, shared_prefixes, trace

DEFAULT_POLICIES = "cost,round-robin,least-requests,approximate"
HEAD = ("policy", "TTFT mean", "p50", "p90", "p99", "output tokens/s", "hits", "imbalance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--pods", type=positive(int), default=8, help="how many pods (default: %(default)s)")
    parser.add_argument(
        "--kv-tokens", type=positive(int), default=307_328, help="tokens that a pod's cache has room for, see the engine's log (default: %(default)s)"
    )
    parser.add_argument(
        "--prefill-tokens-per-s", type=positive(float), default=15_900.0, help="how fast a pod computes prompts (default: %(default)s)"
    )
    parser.add_argument("--step-ms", type=positive(float), default=11.0, help="time between two tokens of a lone request (default: %(default)s)")
    parser.add_argument(
        "--policies", default=DEFAULT_POLICIES, help=f"those to compare, separated by commas (default: %(default)s), of: {', '.join(ROUTERS)}"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same one gives the same run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    workload = parser.add_argument_group("workload, by default prompts with shared prefixes")
    workload.add_argument(
        "--trace", metavar="FILE", type=Path, help="a prompt log in Mooncake's format: timestamp, input_length, output_length, hash_ids"
    )
    workload.add_argument("--trace-speed", type=positive(float), default=1.0, help="how many times as fast as recorded (default: %(default)s)")
    workload.add_argument("--requests", type=positive(int), help="only so many of the trace's first requests")
    workload.add_argument("--users", type=positive(int), help="so many users who chat, each waiting for its answer")
    workload.add_argument("--think-s", type=positive(float), default=10.0, help="what a user thinks between two turns (default: %(default)s)")
    workload.add_argument("--groups", type=positive(int), default=100, help="how many prefixes there are (default: %(default)s)")
    workload.add_argument("--prefix-tokens", type=positive(int), default=6_000, help="their length (default: %(default)s)")
    workload.add_argument("--prompt-tokens", type=positive(int), default=1_200, help="what comes behind a prefix (default: %(default)s)")
    workload.add_argument("--output-tokens", type=positive(int), default=1_000, help="length of an answer (default: %(default)s)")
    workload.add_argument("--rate", type=positive(float), default=12.0, help="requests per second of the whole fleet (default: %(default)s)")
    workload.add_argument("--seconds", type=positive(float), default=60.0, help="for how long requests come (default: %(default)s)")
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError for a policy that there is not, or a trace that cannot be used."""
    names = parsed.policies.split(",")
    if unknown := [name for name in names if name not in ROUTERS]:
        raise SettingError("--policies", unknown[0], f"is none; there are {', '.join(ROUTERS)}")
    model = PodModel(parsed.kv_tokens, parsed.prefill_tokens_per_s, parsed.step_ms / 1000)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        results = {name: _result(parsed, name, model) for name in progress.track(names, description="runs")}
    if parsed.json:
        figures = {name: _figures(result) for name, result in results.items()}
        sys.stdout.write(msgspec.json.encode(figures).decode() + "\n")
        return 0
    sys.stdout.write(table(HEAD, (_row(name, result) for name, result in results.items())) + "\n")
    return 0


def _result(parsed: argparse.Namespace, name: str, model: PodModel) -> RunResult:
    router = ROUTERS[name](parsed.pods, model, parsed.seed)
    workload = _workload(parsed, model)
    fleet = Fleet(parsed.pods, model, [router], workload, Conditions(), parsed.seed)
    try:
        return result_of(fleet.run(), parsed.pods, workload.until_s)
    except PromptTooLongError as error:
        raise SettingError("--kv-tokens", parsed.kv_tokens, str(error)) from None


def _workload(parsed: argparse.Namespace, model: PodModel) -> Workload:
    if parsed.trace is not None:
        return trace(parsed.trace, speed=parsed.trace_speed, most=parsed.requests, tokens_max=model.kv_tokens - model.block_size)
    if parsed.users is not None:
        return Chats(parsed.users, ChatShape(think_s=parsed.think_s), parsed.seconds, seed=parsed.seed)
    return shared_prefixes(
        [(parsed.rate, parsed.seconds)],
        groups=parsed.groups,
        prompts=0,
        prefix=parsed.prefix_tokens,
        question=parsed.prompt_tokens,
        answer=parsed.output_tokens,
        seed=parsed.seed,
    )


def _figures(result: RunResult) -> dict[str, float]:
    shares = {f"ttft_p{round(100 * share)}_s": result.ttft_at_s(share) for share in (0.5, 0.9, 0.99)}
    return {
        "requests": len(result.ttft_s),
        "ttft_mean_s": result.ttft_mean_s,
        **shares,
        "output_tokens_per_s": result.tokens_per_s,
        "hit_share": result.hit_share,
        "imbalance": result.imbalance,
        "preemptions": result.preemptions,
    }


def _row(name: str, result: RunResult) -> tuple[str, ...]:
    times = (result.ttft_mean_s, *(result.ttft_at_s(share) for share in (0.5, 0.9, 0.99)))
    return (name, *(f"{time:.3f} s" for time in times), f"{result.tokens_per_s:,.0f}", f"{100 * result.hit_share:.1f} %", f"{result.imbalance:.2f}")
