"""A resolver of requests that carry their tokens."""

from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.engines.api import EngineApi
from scorer_api.api.adapters import Adapters
from scorer_api.api.resolve import RequestResolver
from scorer_api.index.view import View
from scorer_api.metrics import TokenMetrics
from scorer_api.tokens.engine_tokenizer import EngineTokenizer
from scorer_api.tokens.resolver import TokenResolver


class _NoPods:
    """No pods to ask for tokens, and no adapters."""

    def api(self, pod: str, model: str) -> EngineApi:
        raise AssertionError("a request with tokens asks no pod")

    def models_with(self, adapter: str) -> set[str]:
        return set()

    def models_named(self, alias: str) -> set[str]:
        return set()

    def adapters(self, model: str) -> set[str]:
        return set()


def request_resolver(view: View) -> RequestResolver:
    settings, metrics = Settings(), TokenMetrics(CollectorRegistry())
    return RequestResolver(view, TokenResolver(settings, EngineTokenizer(settings, view, _NoPods(), metrics), {}, metrics), Adapters({}, _NoPods()))
