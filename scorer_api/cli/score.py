"""`kv-indexer score`: ask a running service, print a table."""

import argparse

from scorer_api.cli.prompt_arguments import add_prompt, prompt_of
from scorer_api.cli.service_connection import add_service, ask
from scorer_api.cli.text_table import table
from scorer_api.client import ScoreAnswer

HEADS = ("POD", "SCORE", "TOKENS", "BLOCKS", "TIERS", "RANK", "TRUST")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_service(parser)
    add_prompt(parser)
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError for a file that cannot be used."""
    tokens, asked = prompt_of(parsed)
    return ask(parsed, lambda client: as_text(client.score(parsed.model, tokens, **asked)))


def as_text(answer: ScoreAnswer) -> str:
    """The answer as text."""
    rows = [
        (
            pod.pod,
            f"{pod.score:.4f}",
            str(pod.matched_tokens),
            f"{pod.matched_blocks}/{pod.usable_blocks}",
            " ".join(f"{tier}:{count}" for tier, count in pod.tiers.items()) or "-",
            str(pod.rank),
            pod.trust,
        )
        for pod in answer.pods
    ]
    return f"model {answer.model}, {answer.tokens} tokens, best: {answer.best or 'none, nothing matches'}\n{table(HEADS, rows)}"
