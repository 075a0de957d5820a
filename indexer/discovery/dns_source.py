"""A source in DNS: `dns:_http._tcp.NAME`, whose SRV records name each engine and its port, and `dns:NAME?port=8000`, by its addresses.

It is looked up again when the records' time to live is over. A server that fails keeps what is known; that there is nothing is believed when it was
said several times in a row. DNS tells neither of uids nor of readiness: an engine that is no longer named is not ready, and forgotten after a while.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver
import msgspec
from dns.message import Message

from indexer.discovery.dns_sockets import Sockets
from indexer.discovery.errors import SourceError, Trouble
from indexer.discovery.found_engine import FoundEngine, by_pod
from indexer.discovery.list_watch import Health
from indexer.discovery.source_spec import DiscoverSpec

log = logging.getLogger(__name__)

# Records that may be kept for longer are looked up again, those that may not be kept at all are asked for no more often.
TTL_S = (1.0, 30.0)
LOOKUP_S = 5.0
PAUSE_S = (0.5, 15.0)
# An empty answer is believed when it is the third in a row.
EMPTY_ANSWERS = 3
EMPTY_PAUSE_S = 0.75
RECORDS_MAX = 20_000
SOCKETS = Sockets()


def make_resolver() -> dns.asyncresolver.Resolver:
    """The one of this machine."""
    return dns.asyncresolver.Resolver()


class DnsSource:
    """`run` keeps `found`. `expiry_s`: how long an engine that is no longer named is kept as not ready."""

    def __init__(self, spec: DiscoverSpec, changed: Callable[[], None], note_error: Callable[[Trouble], None], expiry_s: float) -> None:
        self.spec = spec
        self.found: dict[str, FoundEngine] | None = None
        self.unusable = 0
        self._changed = changed
        self._expiry_s = expiry_s
        self._health = Health(spec.text, note_error)
        self._gone_since_s: dict[str, float] = {}
        self._empty = 0

    def failures(self) -> Iterator[str]:
        return self._health.failures()

    async def run(self) -> None:
        """Cancel it."""
        pause_s, pause_max_s = PAUSE_S
        resolver: dns.asyncresolver.Resolver | None = None
        while True:
            try:
                resolver = resolver or make_resolver()
                engines, ttl_s = await self._look_up(resolver)
            except SourceError as error:
                resolver = None  # resolv.conf may name others by now
                self._health.note_failure(error)
                wait_s, pause_s = pause_s, min(2 * pause_s, pause_max_s)
            except Exception as error:  # an error of ours must not end the look-ups for good
                resolver = None
                log.debug("look-up failed", exc_info=error)
                self._health.note_failure(SourceError("malformed", f"cannot be looked up: {error}"))
                wait_s, pause_s = pause_s, min(2 * pause_s, pause_max_s)
            else:
                pause_s = PAUSE_S[0]
                self._health.note_success()
                wait_s = self._take(engines, ttl_s)
            await asyncio.sleep(wait_s)

    def _take(self, engines: dict[str, FoundEngine], ttl_s: float) -> float:
        """Take up what is named now. Returns when to look again, in seconds."""
        self._empty = 0 if engines else self._empty + 1
        if self.found and not engines and self._empty < EMPTY_ANSWERS:
            return EMPTY_PAUSE_S
        now_s = time.monotonic()
        gone = {pod: self._gone_since_s.get(pod, now_s) for pod in (self.found or {}) if pod not in engines}
        self._gone_since_s = {pod: since_s for pod, since_s in gone.items() if now_s - since_s < self._expiry_s}
        kept = {pod: msgspec.structs.replace(each, is_ready=False) for pod, each in (self.found or {}).items() if pod in self._gone_since_s}
        if self.found is None or self.found != engines | kept:
            self.found = engines | kept
            self._changed()
        shortest_s, longest_s = TTL_S
        # A gone one is forgotten in time, too.
        return min(max(shortest_s, ttl_s), longest_s, *(max(0.05, since_s + self._expiry_s - now_s) for since_s in self._gone_since_s.values()))

    # Look-ups

    async def _look_up(self, resolver: dns.asyncresolver.Resolver) -> tuple[dict[str, FoundEngine], float]:
        """The engines by pod, and for how long the answer counts. Raises SourceError."""
        if self.spec.name.startswith("_"):
            return await self._services(resolver)
        assert self.spec.options.http_port is not None, "the spec was checked"
        addresses, ttl_s = await self._addresses(resolver, self.spec.name)
        return by_pod(self._engine(address, self.spec.options.http_port, "") for address in addresses), ttl_s

    async def _services(self, resolver: dns.asyncresolver.Resolver) -> tuple[dict[str, FoundEngine], float]:
        answer = await self._ask(resolver, self.spec.name, "SRV")
        if answer is None:
            return {}, 0.0
        added = _added_addresses(answer.response)
        ttl_s = float(answer.rrset.ttl) if answer.rrset is not None else 0.0
        found = []
        for record in answer:
            addresses = added.get(record.target)
            if addresses is None:
                addresses, its_ttl_s = await self._addresses(resolver, record.target.to_text())
                ttl_s = min(ttl_s, its_ttl_s)
            name = record.target.labels[0].decode("ascii", "replace")
            found += [self._engine(address, self.spec.options.http_port or record.port, name) for address in addresses[:1]]
        return by_pod(found), ttl_s

    async def _addresses(self, resolver: dns.asyncresolver.Resolver, name: str) -> tuple[list[str], float]:
        """The IPv4 addresses of a name, or where there is none those of IPv6: a pod with both is one engine."""
        for kind in ("A", "AAAA"):
            answer = await self._ask(resolver, name, kind)
            if answer is not None and answer.rrset is not None:
                return [record.address for record in answer], float(answer.rrset.ttl)
        return [], 0.0

    async def _ask(self, resolver: dns.asyncresolver.Resolver, name: str, kind: str) -> dns.resolver.Answer | None:
        """None where there is no such record. Raises SourceError."""
        try:
            answer = await resolver.resolve(name, kind, lifetime=LOOKUP_S, search=not name.endswith("."), backend=SOCKETS)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return None
        except dns.exception.Timeout:
            raise SourceError("timeout", f"no server answered for {name} within {LOOKUP_S:g} s") from None
        except dns.exception.DNSException as error:
            raise SourceError("unreachable", f"{name} cannot be looked up: {error}") from None
        if len(answer) > RECORDS_MAX:
            raise SourceError("too_large", f"{name} has more than {RECORDS_MAX} records")
        return answer

    def _engine(self, address: str, port: int, name: str) -> FoundEngine:
        return FoundEngine(address=address, port=port, source=self.spec.text, name=name, options=self.spec.options)


def _added_addresses(response: Message) -> dict[dns.name.Name, list[str]]:
    """Those that came along with SRV records, IPv4 before IPv6."""
    found: dict[dns.name.Name, list[str]] = {}
    for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
        for rrset in response.additional:
            if rrset.rdtype == kind:
                found.setdefault(rrset.name, []).extend(record.address for record in rrset)
    return found
