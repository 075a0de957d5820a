"""`kv-indexer doctor`: find out why scores are zero, or what else is wrong."""

import argparse
import asyncio
import math
from urllib.parse import urlsplit

from indexer.errors import SettingError
from indexer.main.command import run as run_until_stopped
from indexer.masking import masked
from indexer.store.client.connection import check_url
from indexer.store.keyspace import check_namespace
from scorer_api.cli.service_connection import add_service, connection_of
from scorer_api.cli.stop_event import unless_stopped
from scorer_api.doctor.checks.findings import EXIT_CODES, Finding, worst
from scorer_api.doctor.examination import ExaminationRequest, examine
from scorer_api.doctor.report import as_json, as_text

LISTEN_MAX_S = 60.0
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_service(parser)
    parser.add_argument("--model", help="look at the pods of this model only")
    parser.add_argument("--pod", action="append", default=[], help="look at this pod only; may be repeated")
    parser.add_argument("--prompt", metavar="TEXT", help="ask for the scores of this prompt, and why; needs --model")
    parser.add_argument(
        "--probe", action="store_true", help="send a new prompt through each engine, twice, and see whether its blocks appear; needs --model"
    )
    parser.add_argument("--redis", metavar="URL", help="look at the Redis that replicas share, too")
    parser.add_argument("--namespace", default="kvi", help="beginning of every key in Redis (default: %(default)s)")
    parser.add_argument("--listen-s", type=float, default=3.0, help="how long to listen to each engine's events (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code: 0 nothing worse than notes, 1 warnings, 3 errors. Raises SettingError for words or files that cannot be used."""
    request = request_of(parsed)
    findings: list[Finding] | None = None

    async def until_stopped(stop: asyncio.Event) -> None:
        nonlocal findings
        findings = await unless_stopped(stop, examine(request))
        if findings is not None:
            # Before the loop ends: a name that is still being looked up would hold it.
            print(as_json(findings) if parsed.json else as_text(findings), flush=True)  # noqa: T201 - the command's output

    run_until_stopped(until_stopped)
    return INTERRUPTED if findings is None else EXIT_CODES[worst(findings)]


def request_of(parsed: argparse.Namespace) -> ExaminationRequest:
    """Raises SettingError."""
    _check_url(parsed.url)
    for flag, is_given in (("--prompt", parsed.prompt is not None), ("--probe", parsed.probe)):
        if is_given and parsed.model is None:
            raise SettingError("--model", None, f"is required with {flag}: the name of the model, as its pods are registered")
    if not 0 < parsed.listen_s <= LISTEN_MAX_S or not math.isfinite(parsed.listen_s):
        raise SettingError("--listen-s", parsed.listen_s, f"should be above 0 and at most {LISTEN_MAX_S:g}")
    check_namespace(parsed.namespace, "--namespace")
    if parsed.redis is not None:
        check_url(parsed.redis, "--redis")
    connection = connection_of(parsed)
    return ExaminationRequest(
        connection.url,
        token=connection.token,
        verify=connection.verify,
        model=parsed.model,
        pods=tuple(parsed.pod),
        prompt=parsed.prompt,
        probes=parsed.probe,
        redis=parsed.redis,
        namespace=parsed.namespace,
        listen_s=parsed.listen_s,
    )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_good = False
    if not is_good:
        raise SettingError("--url", masked(url), "should be http://host:port or https://host:port")
