"""Publishers that flood and hang up, and peers that stop in the middle. Nothing but ZMTP: the bytes are ours.

libzmq aborted the process where its receive queue was full, the peer hung up and a heartbeat was due (libzmq issues 3937, 4364, 4767).
"""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from indexer.receiving.zmtp import COMMAND, GREETING, READY, frame, message
from tests.engine import Engine, batch, stored
from tests.hostile_payloads import memory_bytes
from tests.running import Command
from tests.scenarios.test_listening import free_ports
from tests.settings import QUICK, words_of
from tests.slowness import slowness
from tests.waiting import wait_until

HELLO = GREETING + frame(READY + b"\x0bSocket-Type" + struct.pack(">I", 3) + b"PUB", COMMAND)
MIB = 2**20
# Three publishers in each. `make test-hang-ups` plays a thousand floods in each direction.
ROUNDS = int(os.environ.get("TEST_FLOOD_ROUNDS", "6"))
# A registration, its connection and its first event, on a machine of its own.
REGISTERED_S = 2.0
# More than an inbox holds, and than libzmq's mark was.
TINY = message(b"x") * 150_000


def flood(peer: socket.socket, sent: bytes) -> None:
    with peer, suppress(OSError):
        peer.settimeout(20)
        peer.sendall(HELLO)
        peer.recv(65_536)
        peer.sendall(sent)


def flood_all(peers: list[socket.socket], sent: bytes) -> None:
    threads = [threading.Thread(target=flood, args=(peer, sent)) for peer in peers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def serving(calm: Engine, *words: str, **limits: str) -> Iterator[Command]:
    """It stays up, and the calm pod sees nothing of what happens."""
    settings = words_of({**QUICK, "port": "0", "heartbeat_s": "0.1", "silence_s": "60", **limits})
    with Command("serve", *settings, *words, "--engine", calm.spec("calm")) as service:
        service.wait_url()
        service.wait_for(pod="calm", connected=True)
        yield service
        assert service.process.poll() is None, "it stays up"
        service.wait_for(pod="calm", sequence=calm.publish(stored([1], [1, 2, 3, 4])))
        status = service.stream("calm")
        assert (status["trust"], status["gaps"]) == ("live", 0), (status, service.lines)
        assert not [line for line in service.lines if "Traceback" in line or "ERROR" in line]


@pytest.mark.rule("E1")
@pytest.mark.timeout(120 + 10 * ROUNDS)
def test_publishers_that_dial_us_flood_and_hang_up_many_times() -> None:
    port = free_ports()
    with Engine() as calm, serving(calm, "--listen", f"tcp://127.0.0.1:{port}") as service:
        for number in range(ROUNDS):
            flood_all([socket.create_connection(("127.0.0.1", port), 20) for _ in range(3)], TINY)
            service.wait_for(pod="calm", sequence=calm.publish(stored([7 + number], [number + 1, 2, 3, 4])))
        service.assert_loop_in_time()


@pytest.mark.rule("E1")
@pytest.mark.timeout(120 + 10 * ROUNDS)
def test_publishers_that_we_dial_flood_and_hang_up_many_times() -> None:
    with Engine() as calm, closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(30)
        specs = [word for number in range(3) for word in ("--engine", f"pod=p{number},model=m,events=tcp://127.0.0.1:{listener.getsockname()[1]}")]
        with serving(calm, *specs) as service:
            for number in range(ROUNDS):
                flood_all([listener.accept()[0] for _ in range(3)], TINY)
                service.wait_for(pod="calm", sequence=calm.publish(stored([7 + number], [number + 1, 2, 3, 4])))
            service.assert_loop_in_time()


@contextmanager
def flooded(port: int) -> Iterator[list[int]]:
    """Two publishers send what they can until the block ends. Bytes sent, each time that some were."""
    is_over, sent = threading.Event(), list[int]()

    def send() -> None:
        with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 20)) as peer:
            peer.settimeout(20)
            peer.sendall(HELLO)
            while not is_over.is_set():
                peer.sendall(TINY)
                sent.append(len(TINY))

    with ThreadPoolExecutor(2) as pool:
        sending = [pool.submit(send) for _ in range(2)]
        try:
            yield sent
        finally:
            is_over.set()
            for each in sending:
                each.result(60)


@pytest.mark.rule("E1")
def test_a_flood_at_one_port_delays_no_registration_and_no_news_of_connections() -> None:
    """Pods are registered, connected to, heard of, lost and forgotten while two publishers flood the port for pods that dial in."""
    port = free_ports()
    with Engine() as calm, serving(calm, "--listen", f"tcp://127.0.0.1:{port}") as service, flooded(port) as sent:
        wait_until(lambda: len(sent) > 2, what="the flood")
        for number in range(6):
            url, began_s, slow = f"{service.url}/v1/pods/new-{number}", time.monotonic(), slowness()
            with Engine() as engine:
                spec = {"model": "m", "events": f"tcp://127.0.0.1:{engine.events_port}"}
                assert service.http.put(url, json=spec).status_code == 201
                wait_until(engine.subscriptions, what="the subscription")
                service.wait_for(pod=f"new-{number}", sequence=engine.publish(stored([1], [1, 2, 3, 4])), connected=True)
            service.wait_for(pod=f"new-{number}", connected=False)
            assert service.http.delete(url).status_code == 204
            assert time.monotonic() - began_s < REGISTERED_S * max(slow, slowness())
        before = len(sent)
        wait_until(lambda: len(sent) > before, what="the flood to go on")


@pytest.mark.rule("E1")
def test_all_inboxes_together_have_a_bound() -> None:
    """One connection publishes for 60 pods, large messages, faster than they are applied."""
    port = free_ports()
    payload = batch([stored(list(range(2_000)), list(range(2_000)), block_size=1)])
    with Engine() as calm, serving(calm, "--listen", f"tcp://127.0.0.1:{port}", inboxes_bytes_max=str(32 * MIB)) as service:
        before = memory_bytes("VmHWM", service.process.pid)
        with closing(socket.create_connection(("127.0.0.1", port), 20)) as peer:
            peer.sendall(HELLO)
            until_s = time.monotonic() + 4
            number = 0
            while time.monotonic() < until_s:
                for pod in range(60):
                    peer.sendall(message(b"kv@p%d@m" % pod, number.to_bytes(8), payload))
                number += 1
            assert service.metric("kv_indexer_inbox_dropped_frames_total") > 0
            assert memory_bytes("VmHWM", service.process.pid) - before < 160 * MIB
    assert number * 60 * len(payload) > 32 * MIB, "more was sent than is kept"


@pytest.mark.rule("E1")
def test_parts_of_messages_have_a_bound_together() -> None:
    """Forty connections that each begin a message of 8 MiB and never end it."""
    port = free_ports()
    with Engine() as calm, serving(calm, "--listen", f"tcp://127.0.0.1:{port}", inboxes_bytes_max=str(64 * MIB)) as service, ExitStack() as stack:
        before = memory_bytes("VmHWM", service.process.pid)
        for _ in range(40):
            peer = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), 20)))
            with suppress(OSError):
                peer.sendall(HELLO + b"\x02" + (8 * MIB).to_bytes(8) + bytes(7 * MIB))
        growth = memory_bytes("VmHWM", service.process.pid) - before
        assert growth < 96 * MIB, growth


def test_who_says_nothing_is_hung_up_on() -> None:
    port = free_ports()
    with Engine() as calm, serving(calm, "--listen", f"tcp://127.0.0.1:{port}", heartbeat_timeout_s="0.5"):
        for said in (b"", b"\xff", GREETING, HELLO, b"GET / HTTP/1.1\r\n\r\n"):
            with closing(socket.create_connection(("127.0.0.1", port), 20)) as peer:
                peer.settimeout(20)
                peer.sendall(said)
                while peer.recv(65_536):
                    pass


def test_an_engine_that_no_longer_answers_heartbeats_is_not_connected() -> None:
    with Engine() as calm, closing(socket.create_server(("127.0.0.1", 0))) as listener:
        spec = f"pod=p,model=m,events=tcp://127.0.0.1:{listener.getsockname()[1]}"
        listener.settimeout(0.1)
        with ThreadPoolExecutor(1) as pool, serving(calm, "--engine", spec, heartbeat_timeout_s="1") as service, ExitStack() as stack:
            is_over = threading.Event()
            stack.callback(is_over.set)

            def answer() -> None:
                """Each new connection: it says hello, and then nothing more."""
                while not is_over.is_set():
                    with suppress(OSError):
                        peer = stack.enter_context(closing(listener.accept()[0]))
                        peer.sendall(HELLO)

            answering = pool.submit(answer)
            service.wait_for(pod="p", connected=True)
            service.wait_for(pod="p", connected=False, last_error="disconnected")
            is_over.set()
            answering.result(30)
