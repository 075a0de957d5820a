"""Observes an engine by its own HTTP API, vLLM's or SGLang's. All requests go out at the same time."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from indexer.metrics_text import read_samples
from scorer_api.doctor.checks.observations import AdvertisedSource, ObservedEngine
from scorer_api.doctor.checks.reply import Reply
from scorer_api.doctor.probes.asker import Asker

MODELS_MAX = 1_000
SOURCES_MAX = 4_096
# Gauges whose labels describe the engine's cache.
CACHE_INFO = frozenset({"vllm:cache_config_info", "sglang:cache_config_info", "sglang_cache_config_info"})


class _Model(Struct):
    id: str
    parent: str | None = None


class _Models(Struct):
    data: list[_Model]


class _Version(Struct):
    version: str


class _Tokenized(Struct):
    """SGLang has no max_model_len."""

    tokens: list[int]
    max_model_len: int | None = None


class _Source(Struct):
    endpoint: str | None = None
    replay_endpoint: str | None = None
    data_parallel_rank: int | None = None


class _ServerInfo(Struct):
    """SGLang's arguments. `kv_events_config` is JSON as text."""

    version: str | None = None
    page_size: int | None = None
    disable_radix_cache: bool | None = None
    kv_events_config: str | msgspec.UnsetType | None = msgspec.UNSET


async def observe(asker: Asker, base: str, model: str, prompt: str | None) -> ObservedEngine:
    """`base`: the URL of its API. `prompt`: to tokenize, None for none."""
    base = base.rstrip("/")
    health = await asker.get(f"{base}/health")
    if health.status is None:
        return ObservedEngine(base, health)
    paths = ("/metrics", "/v1/models", "/version", "/kv_event_sources")
    asked = [asker.get(base + path) for path in paths]
    tokenizing = asker.post(f"{base}/tokenize", {"model": model, "prompt": prompt or "doctor"})
    (metrics, models, version, sources, tokenized), info = await asyncio.gather(asyncio.gather(*asked, tokenizing), _server_info(asker, base))
    labels = cache_labels(metrics.body) if metrics.is_ok else {}
    served = models.read(_Models) if models.is_ok else None
    tokens = tokenized.read(_Tokenized) if tokenized.is_ok else None
    said = version.read(_Version) if version.is_ok else None
    return ObservedEngine(
        base,
        health,
        version=said.version if said is not None else info.version,
        metrics=metrics,
        prefix_caching=_prefix_caching(labels, info),
        block_size=_number(labels.get("block_size") or labels.get("page_size")) or info.page_size,
        models=None if served is None else [each.id for each in served.data[:MODELS_MAX]],
        adapters=[] if served is None else [each.id for each in served.data[:MODELS_MAX] if each.parent],
        has_tokenize=None if tokenized.status is None else tokens is not None,
        context_max=None if tokens is None else tokens.max_model_len,
        tokens=None if tokens is None or prompt is None else tokens.tokens,
        sources=_sources(sources, info),
    )


async def tokenize(asker: Asker, base: str, model: str, prompt: str) -> list[int] | None:
    """The engine's tokens of a prompt, None if it does not tokenize it."""
    reply = await asker.post(f"{base.rstrip('/')}/tokenize", {"model": model, "prompt": prompt})
    found = reply.read(_Tokenized) if reply.is_ok else None
    return None if found is None else found.tokens


async def _server_info(asker: Asker, base: str) -> _ServerInfo:
    """Newer SGLang has the first path, older SGLang the second. vLLM has it in its development mode only, with other content."""
    for path in ("/server_info", "/get_server_info"):
        reply = await asker.get(base + path)
        if reply.is_ok and (info := reply.read(_ServerInfo)) is not None:
            return info
    return _ServerInfo()


def cache_labels(metrics: bytes) -> dict[str, str]:
    """The labels in which an engine describes its cache: those of its first rank, none if it has none."""
    try:
        return next((sample.labels for sample in read_samples(metrics.decode(errors="replace"), CACHE_INFO.__contains__)), {})
    except ValueError:
        return {}


def _prefix_caching(labels: dict[str, str], info: _ServerInfo) -> bool | None:
    if (said := labels.get("enable_prefix_caching")) in ("True", "False"):
        return said == "True"
    return None if info.disable_radix_cache is None else not info.disable_radix_cache


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"[1-9]\d{0,6}", text) else None


def _sources(reply: Reply, info: _ServerInfo) -> list[AdvertisedSource] | None:
    """vLLM 0.31 and newer list them; SGLang reports its arguments."""
    if reply.is_ok and (listed := reply.read(list[_Source])) is not None:
        sources = [AdvertisedSource(each.data_parallel_rank, each.endpoint, each.replay_endpoint) for each in listed[:SOURCES_MAX]]
        return sources or [AdvertisedSource(None, None)]
    if info.kv_events_config is msgspec.UNSET:
        return None
    return list(_configured(info.kv_events_config))


def _configured(config: str | None) -> Iterator[AdvertisedSource]:
    """From SGLang's --kv-events-config: the port of rank 0."""
    given: Any = None
    try:
        given = None if config is None else msgspec.json.decode(config)
    except (msgspec.DecodeError, RecursionError):
        return
    if not isinstance(given, dict) or given.get("publisher", "null") == "null":
        yield AdvertisedSource(None, None)
        return
    endpoint, replay = given.get("endpoint"), given.get("replay_endpoint")
    if isinstance(endpoint, str) and endpoint:
        yield AdvertisedSource(0, endpoint, replay if isinstance(replay, str) and replay else None)
