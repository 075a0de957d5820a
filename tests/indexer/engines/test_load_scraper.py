"""Asking engines for their load over real HTTP: what goes wrong with one pod costs no other."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.engines import load_scraper
from indexer.engines.api import EngineApi
from indexer.engines.load import Load
from indexer.engines.load_scraper import LoadScraper
from indexer.metrics import IndexerMetrics
from tests.engine_server import EngineServer
from tests.ports import free_port
from tests.waiting import wait_until_async

SETTINGS = Settings(load_interval_s=0.05)
LIMIT = 2**17


def metrics_text(running: int) -> tuple[int, bytes]:
    return 200, f'vllm:num_requests_running{{engine="0"}} {running}.0\nvllm:num_requests_waiting{{engine="0"}} 0.0\n'.encode()


class Asked:
    """A scraper, what it was told and what it counted."""

    def __init__(self, bases: dict[str, str], *, limited: frozenset[str] = frozenset(), settings: Settings = SETTINGS) -> None:
        self.bases = bases
        self.loads: dict[str, Load] = {}
        self.times_s: dict[str, float] = {}
        self.count = 0
        self.rates: dict[str, float] = {}
        self._registry = CollectorRegistry()
        self.scraper = LoadScraper(
            settings.load_interval_s,
            settings.engine_networks,
            lambda: [(("m", pod), EngineApi(pod, base, pod in limited)) for pod, base in self.bases.items()],
            self.rates.get,
            self._note,
            IndexerMetrics(self._registry),
        )

    def _note(self, model: str, pod: str, load: Load, at_s: float) -> None:
        assert model == "m"
        self.loads[pod], self.times_s[pod] = load, at_s
        self.count += 1

    def outcomes(self, outcome: str) -> float:
        value = self._registry.get_sample_value("kv_indexer_load_requests_total", {"outcome": outcome})
        assert value is not None
        return value


@asynccontextmanager
async def asking(asked: Asked) -> AsyncIterator[Asked]:
    async with asked.scraper:
        yield asked


async def test_each_pod_is_asked_again_and_again() -> None:
    running = iter(range(10_000))
    with (
        EngineServer(routes={"/metrics": lambda _: metrics_text(next(running))}) as one,
        EngineServer(routes={"/v2/metrics": lambda _: metrics_text(7)}) as other,
    ):
        began_s = time.monotonic()
        async with asking(Asked({"a": one.url, "b": f"{other.url}/v2/"})) as asked:
            await wait_until_async(lambda: "b" in asked.loads and asked.loads.get("a", Load(0, 0)).running >= 3)
        assert asked.loads["b"] == Load(7, 0)
        assert began_s < asked.times_s["a"] <= time.monotonic()
        assert set(one.request_counts) == {"/metrics"}
        assert asked.outcomes("load") == asked.count


async def test_the_prefill_rate_of_a_spec_replaces_the_measured_one() -> None:
    with EngineServer(routes={"/metrics": lambda _: metrics_text(1)}) as server:
        asked = Asked({"a": server.url, "b": server.url})
        asked.rates["a"] = 9_000.0
        async with asking(asked):
            await wait_until_async(lambda: asked.loads.keys() == {"a", "b"})
    assert asked.loads == {"a": Load(1, 0, prefill_tokens_per_s=9_000.0), "b": Load(1, 0)}


async def test_a_pod_that_does_not_answer_holds_up_no_other() -> None:
    with (
        EngineServer(routes={"/metrics": lambda _: metrics_text(1)}) as well,
        EngineServer(routes={"/metrics": lambda _: (time.sleep(3), metrics_text(9))[1]}) as hung,
    ):
        async with asking(Asked({"hung": hung.url, "well": well.url})) as asked:
            await wait_until_async(lambda: asked.outcomes("timeout") == 1)
        assert set(asked.loads) == {"well"}
        assert asked.count >= 3


async def test_what_gives_no_load_is_counted_by_its_kind_and_asked_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine the real limit takes longer than an answer may.
    monkeypatch.setattr(load_scraper, "BYTES_MAX", LIMIT)
    answers = {"status": (503, b""), "malformed": (200, b"<html>"), "too_large": (200, b"#" * (LIMIT + 1))}
    with (
        EngineServer(routes={f"/{name}/metrics": lambda _, answer=answer: answer for name, answer in answers.items()}) as api,  # type: ignore[misc]
        EngineServer(routes={"/metrics": lambda _: metrics_text(1)}) as well,
    ):
        bases = {name: f"{api.url}/{name}" for name in answers} | {"unreachable": f"http://127.0.0.1:{free_port()}", "well": well.url}
        async with asking(Asked(bases)) as asked:
            await wait_until_async(lambda: all(asked.outcomes(name) >= 2 for name in [*answers, "unreachable"]) and asked.count >= 20)
            assert asked.outcomes("status") < asked.count / 2
        assert set(asked.loads) == {"well"}


async def test_one_that_comes_back_is_found_again() -> None:
    port = free_port()
    async with asking(Asked({"a": f"http://127.0.0.1:{port}"})) as asked:
        await wait_until_async(lambda: asked.outcomes("unreachable") >= 2)
        with EngineServer(routes={"/metrics": lambda _: metrics_text(4)}, port=port):
            await wait_until_async(lambda: asked.loads.get("a") == Load(4, 0))


async def test_a_pod_that_is_gone_is_not_asked_any_more() -> None:
    with EngineServer(routes={"/metrics": lambda _: metrics_text(1)}) as api, EngineServer(routes={"/metrics": lambda _: metrics_text(2)}) as other:
        async with asking(Asked({"a": api.url, "b": other.url})) as asked:
            await wait_until_async(lambda: "a" in asked.loads)
            del asked.bases["a"]
            before = other.request_counts["/metrics"]
            await wait_until_async(lambda: other.request_counts["/metrics"] > before + 2)
            last = api.request_counts["/metrics"]
            await wait_until_async(lambda: other.request_counts["/metrics"] > before + 8)
            assert api.request_counts["/metrics"] == last


async def test_what_somebody_registered_is_asked_only_where_engines_may_be() -> None:
    with EngineServer(routes={"/metrics": lambda _: metrics_text(1)}) as api:
        settings = Settings(load_interval_s=0.05, allowed_engine_networks="10.0.0.0/8")
        async with asking(Asked({"limited": api.url, "named": api.url}, limited=frozenset({"limited"}), settings=settings)) as asked:
            await wait_until_async(lambda: asked.outcomes("outside") >= 2 and "named" in asked.loads)
        assert set(asked.loads) == {"named"}


TRTLLM_TEXT = b"trtllm_num_requests_running 60.0\ntrtllm_num_requests_waiting 40.0\ntrtllm_kv_cache_utilization 0.5\n"
ITERATION = b'[{"numActiveRequests": 6, "numQueuedRequests": 4, "kvCacheStats": {"maxNumBlocks": 8, "usedNumBlocks": 2, "tokensPerBlock": 32}}]'


async def test_tensorrt_llm_is_asked_at_both_paths() -> None:
    """Its /metrics is JSON, which is newer than its Prometheus text, and which not every engine fills."""
    routes = {
        "text": {"/metrics": (200, b"[]"), "/prometheus/metrics": (200, TRTLLM_TEXT)},
        "json": {"/metrics": (200, ITERATION), "/prometheus/metrics": (404, b"")},
        "both": {"/metrics": (200, ITERATION), "/prometheus/metrics": (200, TRTLLM_TEXT)},
        "none": {"/metrics": (200, b"[]"), "/prometheus/metrics": (404, b"")},
    }
    served = {f"/{pod}{path}": lambda _, answer=answer: answer for pod, paths in routes.items() for path, answer in paths.items()}
    with EngineServer(routes=served) as api:  # type: ignore[arg-type]
        async with asking(Asked({pod: f"{api.url}/{pod}" for pod in routes})) as asked:
            await wait_until_async(lambda: len(asked.loads) == 3 and asked.outcomes("malformed") >= 1)
        assert asked.loads == {
            "text": Load(60, 40, 0.5),
            "json": Load(6, 4, 0.25, kv_tokens=256.0),
            "both": Load(6, 4, 0.25, kv_tokens=256.0),
        }
