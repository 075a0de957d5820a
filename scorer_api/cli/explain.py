"""`kv-indexer explain`: why each pod's match of a prompt ends where it does, as a table, with the hints below it."""

import argparse

from scorer_api.cli.prompt_arguments import add_prompt, prompt_of
from scorer_api.cli.service_connection import add_service, ask
from scorer_api.cli.text_table import table
from scorer_api.client import ExplainAnswer, PodLoad

HEADS = ("POD", "SCORE", "TOKENS", "BLOCKS", "RUNNING", "WAITING", "KV", "TRUST", "WHY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_service(parser)
    add_prompt(parser)
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError for a file that cannot be used."""
    tokens, asked = prompt_of(parsed)
    return ask(parsed, lambda client: as_text(client.explain(parsed.model, tokens, **asked)))


def as_text(answer: ExplainAnswer) -> str:
    """The answer as text."""
    rows = [
        (pod.pod, f"{pod.score:.4f}", str(pod.matched_tokens), f"{pod.matched_blocks}/{pod.usable_blocks}", *_load(pod.load), pod.trust, pod.why)
        for pod in answer.pods
    ]
    counted = "" if answer.tokens is None else f", {answer.tokens} tokens from {answer.source}"
    hints = [f"{hint.code}: {hint.detail}" for hint in answer.hints]
    return "\n".join([f"model {answer.model}{counted}", table(HEADS, rows), *hints])


def _load(load: PodLoad | None) -> tuple[str, str, str]:
    """Running and waiting requests, and the share of the KV cache in use."""
    if load is None:
        return "-", "-", "-"
    return str(load.running), str(load.waiting), "-" if load.kv_usage is None else f"{load.kv_usage:.0%}"
