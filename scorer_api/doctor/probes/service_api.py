"""Observes the service by its HTTP API."""

import asyncio
import ssl
from urllib.parse import urlsplit

from indexer.metrics_text import read_samples
from scorer_api.doctor.checks.observations import ObservedPod, ObservedPods, ObservedService
from scorer_api.doctor.checks.reply import Reply
from scorer_api.doctor.probes.asker import Asker

REFUSED = "kv_indexer_refused_total"
ASK_S = 6.0
TLS_S = 2.0


class Service:
    """`url`: where it is, without a path."""

    def __init__(self, asker: Asker, url: str) -> None:
        self._asker = asker
        self.url = url.rstrip("/")

    async def observe(self) -> ObservedService:
        """Its health, readiness, metrics and pods."""
        paths = ("/healthz", "/readyz", "/metrics", "/v1/pods")
        health, ready, metrics, listed = await asyncio.gather(*(self._asker.get(self.url + path) for path in paths))
        return ObservedService(health, ready, metrics, listed, pods_of(listed), wants_tls=health.status is None and await self._wants_tls())

    async def _wants_tls(self) -> bool:
        """Whether it accepts a TLS connection, after it did not answer without. Nothing is sent, so its certificate does not matter."""
        url = urlsplit(self.url)
        if url.scheme != "http" or url.hostname is None:
            return False
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            async with asyncio.timeout(TLS_S):
                _, writer = await asyncio.open_connection(url.hostname, url.port or 80, ssl=context)
        except (OSError, TimeoutError, ValueError):
            return False
        writer.transport.abort()
        return True

    async def pods(self) -> list[ObservedPod]:
        """The pods at present, none if it does not answer."""
        return pods_of(await self._asker.get(f"{self.url}/v1/pods")) or []

    async def score(self, model: str, tokens: list[int], pods: list[str] | None = None) -> Reply:
        asked = {"model": model, "token_ids": tokens}
        return await self._asker.post(f"{self.url}/v1/score", asked if pods is None else {**asked, "pods": pods}, timeout_s=ASK_S)

    async def explain(self, model: str, tokens: list[int] | None, prompt: str) -> Reply:
        """By tokens if there are any, else by the prompt itself."""
        source = {"prompt": prompt} if tokens is None else {"token_ids": tokens}
        return await self._asker.post(f"{self.url}/v1/explain", {"model": model, **source}, timeout_s=ASK_S)


def pods_of(reply: Reply) -> list[ObservedPod] | None:
    """The pods in an answer of /v1/pods, None if it is not one."""
    found = reply.read(ObservedPods) if reply.is_ok else None
    return None if found is None else found.pods


def refusals(metrics: bytes) -> dict[str, int]:
    """Reason → how many messages or events the service could not use."""
    try:
        samples = list(read_samples(metrics.decode(errors="replace"), REFUSED.__eq__))
        counts = {sample.labels["reason"]: int(sample.value) for sample in samples if "reason" in sample.labels}
    except (ValueError, OverflowError):
        return {}
    return {reason: count for reason, count in counts.items() if count > 0}
