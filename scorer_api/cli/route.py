"""`kv-indexer route`: which pod a prompt should go to, with a table of what is known of each pod."""

import argparse

from scorer_api.cli.prompt_arguments import add_prompt, prompt_of
from scorer_api.cli.service_connection import add_service, ask
from scorer_api.cli.text_table import table
from scorer_api.client import Client, RouteAnswer, RoutedPod
from scorer_api.client.calls import RouteAsked
from scorer_api.routing.policies import POLICY_NAMES

HEADS = ("POD", "COST", "MATCHED", "UNCACHED", "QUEUED", "RUNNING", "WAITING", "KV", "LOAD AGE", "TRUST", "WHY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_service(parser)
    add_prompt(parser)
    parser.add_argument("--policy", choices=POLICY_NAMES, help="how to pick (default: the service's own)")
    parser.add_argument("--session-id", help="session that the policy session keeps on one pod")
    parser.add_argument("--exclude", action="append", default=[], metavar="POD", help="never pick this pod; may be repeated")
    parser.add_argument("--output-tokens-expected", type=int, metavar="N", help="expected length of the answer in tokens")
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError for a file that cannot be used."""
    tokens, prompt = prompt_of(parsed)
    asked: RouteAsked = {
        **prompt,
        "policy": parsed.policy,
        "session_id": parsed.session_id,
        "exclude": parsed.exclude or None,
        "output_tokens_expected": parsed.output_tokens_expected,
    }

    def pick(client: Client) -> str:
        answer = client.route(parsed.model, tokens, **asked)
        client.route_done(answer.id)  # nothing will be sent
        return as_text(answer)

    return ask(parsed, pick)


def as_text(answer: RouteAnswer) -> str:
    """The answer as text: the pods in the order in which to try them, then the others."""
    order = [answer.pod, *answer.fallbacks]
    order += [pod for pod in answer.reason if pod not in order]
    first = f"model {answer.model}, {answer.tokens} tokens: {answer.pod} rank {answer.rank}, by {answer.policy}, for {answer.picked_for}"
    return f"{first}\n{table(HEADS, [_row(pod, answer.reason[pod]) for pod in order])}"


def _row(name: str, pod: RoutedPod) -> tuple[str, ...]:
    return (
        name,
        f"{pod.cost_s:.3f} s",
        str(pod.matched_tokens),
        str(pod.uncached_tokens),
        str(pod.queued_tokens),
        "-" if pod.running is None else str(pod.running),
        "-" if pod.waiting is None else str(pod.waiting),
        "-" if pod.kv_usage is None else f"{pod.kv_usage:.0%}",
        "-" if pod.load_age_s is None else f"{pod.load_age_s:.1f} s",
        pod.trust,
        pod.why or "-",
    )
