"""Asking the service."""

import asyncio
import re
import ssl
from urllib.parse import urlsplit

from scorer_api.doctor.fetching import Asker
from scorer_api.doctor.reply import Reply
from scorer_api.doctor.seen import PodSeen, PodsSeen, ServiceSeen

REFUSED = re.compile(rb'^kv_indexer_refused_total\{reason="(\w+)"\} (\S+)$', re.MULTILINE)
ASK_S = 6.0
TLS_S = 2.0


class Service:
    """`url`: where it is, without a path."""

    def __init__(self, asker: Asker, url: str) -> None:
        self._asker = asker
        self.url = url.rstrip("/")

    async def look_at(self) -> ServiceSeen:
        """All that it says of itself, asked for at once."""
        paths = ("/healthz", "/readyz", "/metrics", "/v1/pods")
        health, ready, metrics, listed = await asyncio.gather(*(self._asker.get(self.url + path) for path in paths))
        return ServiceSeen(health, ready, metrics, listed, pods_of(listed), wants_tls=health.status is None and await self._wants_tls())

    async def _wants_tls(self) -> bool:
        """Whether it would have spoken TLS, where it was asked without. Nothing is sent to whoever that is, so nobody checks who it is."""
        url = urlsplit(self.url)
        if url.scheme != "http" or url.hostname is None:
            return False
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            async with asyncio.timeout(TLS_S):
                _, writer = await asyncio.open_connection(url.hostname, url.port or 80, ssl=context)
        except (OSError, TimeoutError, ValueError):
            return False
        writer.transport.abort()
        return True

    async def pods(self) -> list[PodSeen]:
        """Which there are now; none where it does not say."""
        return pods_of(await self._asker.get(f"{self.url}/v1/pods")) or []

    async def score(self, model: str, tokens: list[int], pods: list[str] | None = None) -> Reply:
        asked = {"model": model, "token_ids": tokens}
        return await self._asker.post(f"{self.url}/v1/score", asked if pods is None else {**asked, "pods": pods}, timeout_s=ASK_S)

    async def explain(self, model: str, tokens: list[int] | None, prompt: str) -> Reply:
        """By tokens where there are some, else by the prompt itself."""
        source = {"prompt": prompt} if tokens is None else {"token_ids": tokens}
        return await self._asker.post(f"{self.url}/v1/explain", {"model": model, **source}, timeout_s=ASK_S)


def pods_of(reply: Reply) -> list[PodSeen] | None:
    """What /v1/pods answered."""
    found = reply.read(PodsSeen) if reply.is_ok else None
    return None if found is None else found.pods


def refusals(metrics: bytes) -> dict[str, int]:
    """Reason → how many messages or events the service could not use."""
    found = {}
    for reason, count in REFUSED.findall(metrics):
        try:
            found[reason.decode()] = int(float(count))
        except (ValueError, OverflowError):
            continue
    return {reason: count for reason, count in found.items() if count > 0}
