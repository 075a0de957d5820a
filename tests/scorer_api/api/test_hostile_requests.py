"""Clients that nobody wants, at a service in a process of its own: others are answered, and nothing of it stays."""

import asyncio
import os
import random
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial

import httpx
import msgspec
import pytest

from tests.engine import Engine, stored
from tests.hostile_payloads import EMPTY_ARRAY, EMPTY_MAP, HASH, memory_bytes
from tests.running import Command, Running
from tests.settings import QUICK, words_of
from tests.slowness import Budget
from tests.waiting import wait_until

MIB = 2**20
BODY_BYTES_MAX = 16 * MIB
# The pod holds prompts of so many blocks; prompt `i` is cached up to block `i`.
BLOCKS = 64
BLOCK_SIZE = 4
TIMEOUT_S = 1.0


def tokens_of(length: int, blocks: int) -> list[int]:
    """A prompt of so many blocks and a token, cached up to `length` blocks."""
    return [*range(length * BLOCK_SIZE), *[2**31 + length] * ((blocks - length) * BLOCK_SIZE), 9]


def publish_prompt(engine: Engine) -> int:
    return engine.publish(stored(range(1, BLOCKS + 1), range(BLOCKS * BLOCK_SIZE), block_size=BLOCK_SIZE))


def asked(length: int) -> bytes:
    return msgspec.json.encode({"model": "m", "token_ids": tokens_of(length, BLOCKS)})


@pytest.fixture(scope="module")
def service() -> Iterator[Command]:
    words = words_of({**QUICK, "port": "0", "body_timeout_s": "1", "head_timeout_s": "1"})
    with Engine() as engine, Command("serve", *words, "--engine", engine.spec()) as service:
        service.wait_url()
        service.wait_for(sequence=publish_prompt(engine), trust="live")
        yield service


@pytest.fixture(autouse=True)
def _nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the service has as many open files as before, answers, and has logged nothing wrong."""
    if "service" not in request.fixturenames:
        yield
        return
    service: Command = request.getfixturevalue("service")
    assert service.matched(tokens_of(3, BLOCKS)) == 3 * BLOCK_SIZE
    before, failed = open_files(service), service.metric("kv_indexer_score_requests_total", outcome="failed")
    yield
    assert service.process.poll() is None
    # A probe of the engine has sockets of its own for a moment.
    wait_until(lambda: open_files(service) <= before, what="the number of open files before")
    assert service.matched(tokens_of(3, BLOCKS)) == 3 * BLOCK_SIZE
    assert service.metric("kv_indexer_score_requests_total", outcome="failed") == failed == 0
    service.assert_loop_in_time()
    assert not [line for line in service.lines if "Traceback" in line or "ERROR" in line]


def open_files(service: Command) -> int:
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))


class Wire:
    """A raw connection."""

    def __init__(self, url: str) -> None:
        parsed = httpx.URL(url)
        self.socket = socket.create_connection((parsed.host, parsed.port or 80), timeout=30)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Go away without a goodbye."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def rest(self) -> bytes:
        """All that comes until the service closes the connection."""
        pieces = []
        try:
            while piece := self.socket.recv(65_536):
                pieces.append(piece)
        except ConnectionResetError:
            pass
        return b"".join(pieces)


def request(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /v1/score HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    if not any(header.startswith("Transfer-Encoding") for header in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def answers(raw: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer in what came over a connection."""
    found = []
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        (length,) = (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        found.append((int(head.split()[1]), raw[:length]))
        raw = raw[length:]
    return found


def matched_in(body: bytes) -> int:
    (pod,) = msgspec.json.decode(body)["pods"]
    return int(pod["matched_tokens"])


# Bodies at, over and far over the limit


def post(service: Command, body: bytes, media_type: str = "application/json", path: str = "/v1/score") -> httpx.Response:
    """On a busy machine a large body may not be there in time: then it is sent again."""
    answer = partial(service.http.post, f"{service.url}{path}", content=body, headers={"Content-Type": media_type})
    budget = Budget(20.0)
    while (response := answer()).status_code == 408 and budget.is_left():
        pass
    return response


def test_a_body_at_the_limit_is_answered(service: Command) -> None:
    response = post(service, asked(5).ljust(BODY_BYTES_MAX))
    assert (response.status_code, matched_in(response.content)) == (200, 5 * BLOCK_SIZE)


@pytest.mark.rule("C8")
def test_a_body_over_the_limit_is_refused_and_read_to_its_end(service: Command) -> None:
    sent = request(asked(5).ljust(BODY_BYTES_MAX + 1)) + request(asked(6), "Connection: close")

    def found() -> list[tuple[int, bytes]]:
        with closing(Wire(service.url)) as wire:
            wire.send(sent)
            return answers(wire.rest())

    budget = Budget(20.0)
    while len(both := found()) != 2 and budget.is_left():
        pass  # what is not read to its end in time is closed
    (first, _), (second, body) = both
    assert (first, second, matched_in(body)) == (413, 200, 6 * BLOCK_SIZE)


def test_a_body_far_over_the_limit_is_refused_before_it_comes(service: Command) -> None:
    with closing(Wire(service.url)) as wire:
        wire.send(request(b"", length=10**12))
        ((status, _),) = answers(wire.rest())
    assert status == 413


@pytest.mark.rule("C8")
def test_an_endless_body_is_refused_at_the_limit_and_not_kept(service: Command) -> None:
    before = memory_bytes("VmHWM", service.process.pid)
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    sent = 0
    with closing(Wire(service.url)) as wire:
        wire.send(request(b"", "Transfer-Encoding: chunked"))
        try:
            while sent < 512:
                wire.send(chunk)
                sent += 1
        except OSError:
            pass
    assert 16 <= sent < 512
    assert memory_bytes("VmHWM", service.process.pid) - before < 4 * BODY_BYTES_MAX


FILL = BODY_BYTES_MAX - 200


def in_json(before: bytes, item: bytes, after: bytes) -> tuple[bytes, str]:
    return before + item * (FILL // len(item)) + after, "application/json"


def in_msgpack(before: bytes, item: bytes) -> tuple[bytes, str]:
    count = FILL // len(item)
    return before + struct.pack(">BI", 0xDD, count) + item * count, "application/msgpack"


def many_extra_keys() -> tuple[bytes, str]:
    keys = [[number, ["x"]] for number in range(120_000)]
    return b'{"model":"m","token_ids":[1],"block_extra_keys":%b}' % msgspec.json.encode(keys), "application/json"


def requests_of_extra_keys() -> tuple[bytes, str]:
    """None so large that it would be measured, and every byte of it an object."""
    one = b'{"model":"m","token_ids":[1],"block_extra_keys":[[0,[' + b"{}," * 86_000 + b"9]]]}"
    return b'{"requests":[' + b",".join([one] * 60) + b"]}", "application/json"


# Made by the test that sends it: all of them take 450 MB.
BODIES: dict[str, tuple[Callable[[], tuple[bytes, str]], int]] = {
    "tokens in JSON": (partial(in_json, b'{"model":"m","token_ids":[', b"999,", b"9]}"), 200),
    "tokens in msgpack": (partial(in_msgpack, b"\x82\xa5model\xa1m\xa9token_ids", HASH), 200),
    "tokens and then others": (partial(in_json, b'{"model":"m","token_ids":[', b"999,", b'9],"token_ids":[1]}'), 422),
    "others and then tokens": (partial(in_json, b'{"model":"m","token_ids":[1],"token_ids":[', b"999,", b"9]}"), 200),
    "extra keys of many blocks": (many_extra_keys, 200),
    "arrays for tokens": (partial(in_json, b'{"model":"m","token_ids":[', b"[],", b"9]}"), 422),
    "extra keys in JSON": (partial(in_json, b'{"model":"m","token_ids":[1],"block_extra_keys":[[0,[', b"{},", b"9]]]}"), 422),
    "extra keys in msgpack": (partial(in_msgpack, b"\x83\xa5model\xa1m\xa9token_ids\x90\xb0block_extra_keys\x91\x92\x00", EMPTY_MAP), 422),
    "blocks with extra keys": (partial(in_msgpack, b"\x83\xa5model\xa1m\xa9token_ids\x90\xb0block_extra_keys", b"\x92\x00\x90"), 422),
    "hashes in JSON": (partial(in_json, b'{"model":"m","block_hashes":[', b"9,", b"9]}"), 422),
    "hashes as digits": (partial(in_json, b'{"model":"m","block_hashes":[', b'"0123456789abcdef",', b"9]}"), 422),
    "hashes in msgpack": (partial(in_msgpack, b"\x82\xa5model\xa1m\xacblock_hashes", b"\xc4\x00"), 422),
    "pods": (partial(in_msgpack, b"\x83\xa5model\xa1m\xa9token_ids\x90\xa4pods", b"\xa1a"), 422),
    "an unknown field": (partial(in_msgpack, b"\x83\xa5model\xa1m\xa9token_ids\x90\xa4news", EMPTY_ARRAY), 422),
    "unknown fields": (partial(in_json, b'{"model":"m","token_ids":[]', b',"a":0', b"}"), 422),
    "a prompt of tokens": (partial(in_json, b'{"model":"m","prompt":[', b"999,", b"9]}"), 200),
    "nesting": (partial(in_json, b'{"model":"m","token_ids":[],"block_extra_keys":', b"[", b""), 400),
}
BATCHES: dict[str, tuple[Callable[[], tuple[bytes, str]], int]] = {
    "requests that are none": (partial(in_json, b'{"requests":[', b"0,", b"9]}"), 422),
    "requests in msgpack": (partial(in_msgpack, b"\x81\xa8requests", EMPTY_MAP), 422),
    "one request of tokens": (partial(in_json, b'{"requests":[{"model":"m","token_ids":[', b"999,", b"9]}]}"), 200),
    "one request of extra keys": (partial(in_json, b'{"requests":[{"model":"m","token_ids":[1],"block_extra_keys":[[0,[', b"{},", b"9]]]}]}"), 200),
    "requests of extra keys": (requests_of_extra_keys, 200),
    "nesting": (partial(in_json, b'{"requests":[', b"[", b""), 400),
}


def assert_takes_little(service: Command, path: str, make: Callable[[], tuple[bytes, str]], status: int) -> None:
    """The answer has this status, and making it takes no more than twenty times the size of a body at the limit."""
    body, media_type = make()
    before = memory_bytes("VmRSS", service.process.pid)
    assert post(service, body, media_type, path).status_code == status
    # The peak is of the process's whole life: where an earlier test made it, this one is within it.
    assert memory_bytes("VmHWM", service.process.pid) - before < 20 * BODY_BYTES_MAX


@pytest.mark.rule("C8")
@pytest.mark.parametrize("name", BATCHES)
def test_whatever_fills_a_batch_takes_no_more_than_twenty_times_its_size_either(service: Command, name: str) -> None:
    assert_takes_little(service, "/v1/score/batch", *BATCHES[name])


@pytest.mark.rule("C8")
@pytest.mark.parametrize("name", BODIES)
def test_whatever_fills_a_body_takes_no_more_than_twenty_times_its_size(service: Command, name: str) -> None:
    assert_takes_little(service, "/v1/score", *BODIES[name])


# Slow senders and idle connections


@pytest.mark.rule("C8")
@pytest.mark.parametrize(
    ("start", "status"), [(request(b"", length=1000), 408), (b"POST /v1/score HTTP/1.1\r\nHost: x\r\nX-Slow: ", None)], ids=["body", "head"]
)
def test_slow_senders_are_let_go_and_hold_nobody_up(service: Command, start: bytes, status: int | None) -> None:
    """A hundred of them send a byte now and then, for as long as they may."""
    with ExitStack() as stack:
        wires = [stack.enter_context(closing(Wire(service.url))) for _ in range(100)]
        for wire in wires:
            wire.send(start)
        started_s = time.monotonic()
        while time.monotonic() < started_s + TIMEOUT_S / 2:
            for wire in wires:
                wire.send(b"x")
            assert service.matched(tokens_of(7, BLOCKS)) == 7 * BLOCK_SIZE
        said = [wire.rest() for wire in wires]
    assert Counter(tuple(status for status, _ in answers(raw)) for raw in said) == {(() if status is None else (status,)): 100}


def test_a_head_in_pieces_on_a_connection_that_was_used_has_its_time_too(service: Command) -> None:
    with closing(Wire(service.url)) as wire:
        wire.send(request(asked(4)) + b"POST /v1/sco")
        ((status, body),) = answers(wire.rest())
    assert (status, matched_in(body)) == (200, 4 * BLOCK_SIZE)


def test_a_thousand_idle_connections_hold_nobody_up() -> None:
    """Many systems let a process open 1,024 files unless it asks for more, and the service does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 4_096, "this test needs more open files than this system allows"
    words = words_of({**QUICK, "port": "0", "head_timeout_s": "300"})  # opening so many takes long where much else runs
    with Engine() as engine, ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            service = stack.enter_context(Command("serve", *words, "--engine", engine.spec()))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4_096), hard))
        service.wait_url()
        service.wait_for(sequence=publish_prompt(engine), trust="live")
        before = open_files(service)
        idle = [stack.enter_context(closing(Wire(service.url))) for _ in range(1_000)]
        for wire in idle[:500]:  # the other half has said nothing at all
            wire.send(b"POST /v1/score HTTP/1.1\r\nHost: x\r\n")
        wait_until(lambda: open_files(service) >= before + 1_000)
        for length in range(BLOCKS):
            assert service.matched(tokens_of(length, BLOCKS)) == length * BLOCK_SIZE
        publish_prompt(engine)
        service.wait_for(sequence=1, trust="live", gaps=0)
        for wire in idle:
            wire.close()
        wait_until(lambda: open_files(service) <= before)


# Half-closed connections


@pytest.mark.parametrize("length", [0, 1, BLOCKS])
def test_a_client_that_has_said_all_and_shuts_down_its_side_gets_its_answer(service: Command, length: int) -> None:
    with closing(Wire(service.url)) as wire:
        wire.send(request(asked(length)))
        wire.socket.shutdown(socket.SHUT_WR)
        ((status, body),) = answers(wire.rest())
    assert (status, matched_in(body)) == (200, length * BLOCK_SIZE)


def test_pipelined_requests_are_answered_after_their_client_shut_down_its_side(service: Command) -> None:
    with closing(Wire(service.url)) as wire:
        wire.send(b"".join(request(asked(length)) for length in range(5)))
        wire.socket.shutdown(socket.SHUT_WR)
        said = answers(wire.rest())
    assert [(status, matched_in(body)) for status, body in said] == [(200, length * BLOCK_SIZE) for length in range(5)]


def test_after_its_answer_a_connection_that_was_shut_down_is_closed(service: Command) -> None:
    with closing(Wire(service.url)) as wire:
        wire.send(request(asked(1)))
        assert wire.socket.recv(12) == b"HTTP/1.1 200"
        wire.socket.shutdown(socket.SHUT_WR)
        wire.rest()


@pytest.mark.parametrize(
    "sent", [b"", b"POST", request(b"", length=1000), request(b'{"model": "m"', length=1000), request(b"5\r\n{", "Transfer-Encoding: chunked")]
)
def test_a_client_that_shuts_down_its_side_before_it_has_said_all_gets_nothing_and_is_let_go(service: Command, sent: bytes) -> None:
    started_s = time.monotonic()
    with closing(Wire(service.url)) as wire:
        wire.send(sent)
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.rest() == b""
    assert time.monotonic() - started_s < 20


# Clients that go away

AWAY = ("before its head", "in its body", "before its answer", "by a reset", "in its answer")


async def one_client(url: httpx.URL, rng: random.Random, clients: asyncio.Semaphore, seen: Counter[str]) -> None:
    """Asks and checks the answer, or goes away somehow."""
    async with clients:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        try:
            length = rng.randrange(BLOCKS + 1)
            raw = request(asked(length))
            way = rng.choice((*AWAY, "not at all", "not at all"))
            match way:
                case "before its head":
                    writer.write(raw[: rng.randrange(60)])
                case "in its body":
                    writer.write(raw[: -rng.randrange(1, 200)])
                case _:
                    writer.write(raw)
            await writer.drain()
            if rng.random() < 0.5:
                await asyncio.sleep(rng.random() * 0.01)
            if way == "by a reset":
                writer.transport.abort()
            if way == "in its answer":
                await reader.read(20)
            if way == "not at all":
                head = await reader.readuntil(b"\r\n\r\n")
                ((_, size),) = (line.split(b":") for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                assert head.startswith(b"HTTP/1.1 200")
                assert matched_in(await reader.readexactly(int(size))) == length * BLOCK_SIZE
            seen[way] += 1
        finally:
            writer.close()


async def storm(url: str, count: int, seed: int) -> Counter[str]:
    """So many clients, a hundred at a time. Returns how many there were of each kind."""
    rng, clients, seen = random.Random(seed), asyncio.Semaphore(100), Counter[str]()
    await asyncio.gather(*(one_client(httpx.URL(url), rng, clients, seen) for _ in range(count)))
    return seen


def test_clients_that_go_away_at_any_time_leave_nothing_behind(service: Command) -> None:
    matches = service.metric("kv_indexer_score_requests_total", outcome="match")
    seen = asyncio.run(storm(service.url, 2_000, seed=1))
    assert set(seen) == {*AWAY, "not at all"}
    assert sum(seen.values()) == 2_000
    assert service.metric("kv_indexer_score_requests_total", outcome="match") > matches
    assert service.metric("kv_indexer_score_requests_total", outcome="disconnected") > 0


def test_clients_that_go_away_leave_no_task_behind() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(sequence=publish_prompt(engine), trust="live")

        def tasks() -> int:
            return len(asyncio.all_tasks(service.loop))

        wait_until(lambda: service.matched(tokens_of(1, BLOCKS)) == BLOCK_SIZE)
        before = tasks()
        assert sum(asyncio.run(storm(service.url, 500, seed=2)).values()) == 500
        wait_until(lambda: tasks() <= before, what="the number of tasks before")


# Clients that do not read


@pytest.mark.rule("C8")
def test_batches_that_nobody_reads_take_no_memory_for_what_is_not_read() -> None:
    """The answer to each would have nine megabytes, and waits for its reader: what is not asked for is not made."""
    pods, clients = 100, 20  # the kernel takes some megabytes of each answer
    batch = request(b'{"requests":[' + b",".join([b'{"model":"m","token_ids":[1]}'] * 256) + b"]}").replace(b"/v1/score ", b"/v1/score/batch ")
    with Engine() as engine, ExitStack() as stack:
        specs = [word for number in range(pods) for word in ("--engine", engine.spec(pod=f"{'long' * 50}-{number}"))]
        service = stack.enter_context(Command("serve", *words_of({**QUICK, "port": "0"}), *specs))
        service.wait_url()
        whole = httpx.post(
            f"{service.url}/v1/score/batch", content=batch.partition(b"\r\n\r\n")[2], headers={"Content-Type": "application/json"}, timeout=60
        )
        assert len(whole.json()["answers"]) == 256
        size = len(whole.content)
        assert size > 6_000_000
        before = memory_bytes("VmRSS", service.process.pid)
        wires = [stack.enter_context(closing(Wire(service.url))) for _ in range(clients)]
        for wire in wires:
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            wire.send(batch)
        name = "kv_indexer_score_requests_total"
        wait_until(lambda: service.metric(name, outcome="no_match") > 256 + clients * 8, what="answers for each of them")
        answered = 0.0
        while (now := service.metric(name, outcome="no_match")) > answered:  # until all wait for their readers
            answered = now
            time.sleep(0.5)
        assert answered < clients * 256
        assert memory_bytes("VmRSS", service.process.pid) - before < clients * size / 3
