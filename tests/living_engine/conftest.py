"""Two living engines and the service that follows them, once for all tests; and the table of what was compared, at the end."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.living_engine.comparison import Comparison, Row
from tests.living_engine.vllm_server import VllmServer, make_model
from tests.running import Command
from tests.waiting import wait_until

ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture(scope="session")
def rows(pytestconfig: pytest.Config) -> list[Row]:
    return pytestconfig.stash.setdefault(ROWS, [])


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def engines(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmServer]]:
    """A over TCP, B over ipc."""
    folder: Path = tmp_path_factory.mktemp("vllm")
    with ExitStack() as stack:
        a = stack.enter_context(VllmServer("A", models, folder / "A"))
        b = stack.enter_context(VllmServer("B", models, folder / "B", over_ipc=True))
        started = [engine.start() for engine in (a, b)]
        yield [engine.wait_up() for engine in started]


@pytest.fixture(scope="session")
def comparison(engines: list[VllmServer], rows: list[Row]) -> Iterator[Comparison]:
    with Command("serve", "--port", "0", *(word for engine in engines for word in ("--engine", engine.spec()))) as service:
        service.wait_url()
        wait_until(lambda: service.http.get(f"{service.url}/readyz").json()["status"] == "ready")
        yield Comparison(service, engines, rows)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("the service's answers and the engines' own words")
    terminalreporter.write_line(f"{'':40} compared  equal  cached tokens")
    for kind in dict.fromkeys(row.kind for row in rows):
        terminalreporter.write_line(_line(kind, [row for row in rows if row.kind == kind]))
    terminalreporter.write_line(_line("all requests", [row for row in rows if not row.is_ranking]))
    terminalreporter.write_line(_line("all rankings", [row for row in rows if row.is_ranking]))
    unknowable = sum(not row.knowable for row in rows)
    terminalreporter.write_line(f"of which {unknowable} no index can know: an idle engine announces a reset only with its next step")


def _line(name: str, rows: list[Row]) -> str:
    equal = sum(row.said == row.was for row in rows)
    cached = sum(row.was for row in rows if isinstance(row.was, int))
    return f"{name:40} {len(rows):8}  {equal:5}  {f'{cached:,}' if cached else '':>13}"
