"""The service's roles, each in a process of its own. All answer over HTTP, an indexer about its own view.

with ingest(redis.url, engine.spec()) as indexer, api(redis.url) as scorer:
    scorer.wait_url().score([1, 2, 3])
"""

from tests.running import Command
from tests.settings import QUICK, words_of


def ingest(redis_url: str, *engines: str, namespace: str = "kvi", **settings: str) -> Command:
    """An indexer: follows engines, alone or with others of the same namespace, and writes to Redis."""
    return _command("ingest", redis_url, engines, {**QUICK, "namespace": namespace, **settings})


def api(redis_url: str, *, namespace: str = "kvi", **settings: str) -> Command:
    """A scorer: follows Redis and answers."""
    return _command("api", redis_url, (), {"namespace": namespace, **settings})


def serve(redis_url: str | None, *engines: str, namespace: str = "kvi", **settings: str) -> Command:
    """Both in one process; without Redis the embedded service."""
    named = {} if redis_url is None else {"namespace": namespace}
    return _command("serve", redis_url, engines, {**QUICK, **named, **settings})


def _command(role: str, redis_url: str | None, engines: tuple[str, ...], settings: dict[str, str]) -> Command:
    flags = {"port": "0", **({} if redis_url is None else {"redis": redis_url}), **settings}
    return Command(role, *words_of(flags), *(word for spec in engines for word in ("--engine", spec)))
