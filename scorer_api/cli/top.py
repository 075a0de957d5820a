"""`kv-indexer top`: a live view of a running service in the terminal, or one frame of it."""

import argparse
import asyncio
import os
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from indexer.errors import SettingError
from indexer.main.command import run as run_until_stopped
from indexer.masking import masked
from scorer_api.cli.argument_types import positive
from scorer_api.cli.service_connection import Connection, add_service, connection_of, error_line
from scorer_api.cli.stop_event import unless_stopped
from scorer_api.cli.top_samples import Sample, totals_of
from scorer_api.cli.top_view import frame
from scorer_api.client import AsyncClient, ClientError, Retries, StrangeAnswerError
from scorer_api.client.changes import is_outage

TIMEOUT_S = 5.0
# Without a terminal there is no width to keep to: wide enough for all columns.
WIDTH_OF_NO_TERMINAL = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_service(parser)
    parser.add_argument("--model", help="show the pods of this model only")
    parser.add_argument("--interval-s", default=1.0, type=positive(float), help="seconds between two samples (default: %(default)s)")
    parser.add_argument("--once", action="store_true", help="print one frame, made of two samples, and end; so does output that is no terminal")
    parser.set_defaults(command=run)


class _Sampler:
    """The last two samples of a service, and the error if it does not answer."""

    def __init__(self, client: AsyncClient, model: str | None) -> None:
        self._client = client
        self._model = model
        self.before: Sample | None = None
        self.now: Sample | None = None
        self.outage: ClientError | None = None

    async def sample(self) -> None:
        """Take another sample. Raises ClientError if trying again is of no use."""
        try:
            pods, metrics = await asyncio.gather(self._client.pods(), self._client.metrics())
            totals = totals_of(metrics)
        except ClientError as error:
            if not is_outage(error):
                raise
            self.outage = error
            return
        except ValueError:
            raise StrangeAnswerError("/metrics", 200) from None
        chosen = [pod for pod in pods if self._model in (None, pod.model)]
        self.before = self.now if self.outage is None else None
        self.now, self.outage = Sample(time.monotonic(), chosen, totals), None


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code: 1 if the service refuses or, with --once, does not answer. Raises SettingError."""
    connection = connection_of(parsed)
    is_once = parsed.once or not sys.stdout.isatty()
    failures: list[ClientError] = []

    async def act(stop: asyncio.Event) -> None:
        try:
            async with _client(connection) as client:
                sampler = _Sampler(client, parsed.model)
                await (unless_stopped(stop, _once(sampler, parsed)) if is_once else _live(sampler, parsed, stop))
        except ClientError as error:
            failures.append(error)

    run_until_stopped(act)
    for error in failures:
        print(f"kv-indexer: {error_line(error, parsed.url)}", file=sys.stderr)  # noqa: T201 - the command's one line of error
    return 1 if failures else 0


def _client(connection: Connection) -> AsyncClient:
    try:
        return AsyncClient(connection.url, token=connection.token, verify=connection.verify, timeout_s=TIMEOUT_S, retries=Retries(count=0))
    except ValueError as error:
        raise SettingError("--url", connection.url, str(error).removeprefix("url: ")) from None


async def _once(sampler: _Sampler, parsed: argparse.Namespace) -> None:
    for is_last in (False, True):
        await sampler.sample()
        if sampler.outage is not None:
            raise sampler.outage
        if not is_last:
            await asyncio.sleep(parsed.interval_s)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_NO_TERMINAL)
    console.print(frame(masked(parsed.url), sampler.before, sampler.now, None))


async def _live(sampler: _Sampler, parsed: argparse.Namespace, stop: asyncio.Event) -> None:
    with _keys(stop), Live(console=Console(), screen=True, auto_refresh=False) as live:
        while not stop.is_set():
            await unless_stopped(stop, sampler.sample())
            outage = None if sampler.outage is None else error_line(sampler.outage, parsed.url)
            live.update(frame(masked(parsed.url), sampler.before, sampler.now, outage), refresh=True)
            await unless_stopped(stop, asyncio.sleep(parsed.interval_s))


@contextmanager
def _keys(stop: asyncio.Event) -> Iterator[None]:
    """Stop on the key q; the terminal's mode is restored afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def on_key() -> None:
        typed = os.read(terminal, 64)
        if b"q" in typed or b"Q" in typed or not typed:
            stop.set()

    tty.setcbreak(terminal)
    loop.add_reader(terminal, on_key)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
