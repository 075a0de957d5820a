"""A DNS server for tests, by UDP and TCP. Its messages are made by dnspython; what it answers and when is up to the test."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset

UDP_BYTES_MAX = 512


class DnsServer:
    """`with DnsServer() as server:` answers at `server.port` of 127.0.0.1.

    `records`: (name with its dot, type) → values. `added`: the same, sent along with SRV records. `ttl_s`: of all. `failure`: the code of answers,
    "silent" for none at all. `delay_s`: before each answer. `asked`: every question, as "name type protocol".
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.added: dict[tuple[str, str], list[str]] = {}
        self.ttl_s = 0
        self.failure = ""
        self.delay_s = 0.0
        self.asked: list[str] = []
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="dns", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10), "it did not start"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def publish(self, records: Mapping[tuple[str, str], Sequence[str]]) -> None:
        """These, and no others."""
        self.records = {place: list(values) for place, values in records.items()}

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", 0)
        self.port: int = tcp.sockets[0].getsockname()[1]
        udp, _ = await self._loop.create_datagram_endpoint(lambda: _Udp(self), ("127.0.0.1", self.port))
        self._started.set()
        await self._stop.wait()
        udp.close()
        tcp.close()

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        if (answer := self.answer(question, "tcp")) is not None:
            writer.write(len(answer).to_bytes(2, "big") + answer)
            await writer.drain()
        writer.close()

    def answer(self, wire: bytes, protocol: str) -> bytes | None:
        query = dns.message.from_wire(wire)
        (question,) = query.question
        name, kind = question.name.to_text(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{name} {kind} {protocol}")
        if self.failure == "silent":
            return None
        response = dns.message.make_response(query, recursion_available=True)
        if self.failure:
            response.set_rcode(dns.rcode.from_text(self.failure))
        elif not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif values := self.records.get((name, kind)):
            response.answer.append(dns.rrset.from_text_list(name, self.ttl_s, "IN", kind, values))
            if kind == "SRV":
                response.additional += [dns.rrset.from_text_list(of, self.ttl_s, "IN", its, all_) for (of, its), all_ in self.added.items()]
        content = response.to_wire(max_size=65_535)
        if protocol == "udp" and len(content) > UDP_BYTES_MAX:
            response = dns.message.make_response(query)
            response.flags |= dns.flags.TC
            content = response.to_wire()
        return content


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.DatagramTransport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if (answer := self._server.answer(data, "udp")) is not None:
            asyncio.get_running_loop().call_later(self._server.delay_s, self._transport.sendto, answer, addr)
