"""Engines under a random load, and what every scorer should answer meanwhile.

    with Fleet(seed=1, streams=8) as fleet, serve(None, *fleet.specs) as service:
        service.wait_url()
        fleet.resume()
        …
        fleet.settle(service)

Real sockets; the load runs in a thread of the test's process. The reference is tests/reference.py.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from random import Random
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.engine import Engine
from tests.proxy import Proxy
from tests.reference import WEIGHTS, Copy, Reference, Text
from tests.running import Client
from tests.waiting import wait_until
from tests.workload import Publisher, make_strangers, make_texts

Answer = list[tuple[str, list[tuple[int, list[int], float]]]]


class Asked(NamedTuple):
    """A prompt, the answer to it, and when it was asked and answered."""

    prompt: Text
    answer: dict[str, Any]
    start_s: float
    stop_s: float


class Fleet:
    """So many streams of one model: pod-0 has two ranks, pod-1 counts no copies, the last pod's blocks are twice as long, where there are enough.

    `rate`: batches a second of all engines together, may be set at any time. `with_proxies`: `cut` can break a connection to an engine without its
    noticing. `uniform`: all streams are alike, each of a pod of its own. Keywords beyond go to each Publisher.
    """

    def __init__(
        self,
        seed: int = 0,
        streams: int = 4,
        *,
        model: str = "m",
        rate: float = 40.0,
        with_replay: bool = True,
        with_proxies: bool = False,
        history_max: int = 10_000,
        texts: Sequence[Text] | None = None,
        pod_prefix: str = "pod-",
        uniform: bool = False,
        **more: Any,
    ) -> None:
        self.model = model
        self.rate = rate
        self.texts = list(make_texts(seed) if texts is None else texts)
        self.prompts = [*self.texts, *make_strangers(seed, self.texts)]
        self.idle: set[str] = set()
        """Pods that publish nothing at present."""
        self._random = Random(f"{seed} fleet")
        self._with_proxies = with_proxies
        self.publishers = [
            Publisher(
                pod, rank, Engine(with_replay=with_replay, history_max=history_max), self.texts,
                seed=seed, block_size=block_size, counts_copies=counts_copies, **more,
            )
            for pod, rank, block_size, counts_copies in _layout(streams, pod_prefix, uniform)
        ]  # fmt: skip
        self._proxies: dict[tuple[str, int], Proxy] = {}
        self._lock = threading.RLock()
        self._going = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._expected: dict[Text, Answer] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for publisher in self.publishers:
                publisher.start()
                stack.callback(publisher.kill)
                if self._with_proxies:
                    self._proxies[publisher.pod, publisher.number] = stack.enter_context(Proxy(publisher.engine.events_port))
            self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
            self._thread.start()
            stack.callback(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        if error is None:
            self._raise_failure()

    # What it is

    @property
    def specs(self) -> list[str]:
        """What to give to --engine."""
        return [self._spec(publisher) for publisher in self.publishers]

    @property
    def pods(self) -> list[str]:
        return list(dict.fromkeys(publisher.pod for publisher in self.publishers))

    def publisher(self, pod: str, rank: int = 0) -> Publisher:
        (found,) = (publisher for publisher in self.publishers if (publisher.pod, publisher.number) == (pod, rank))
        return found

    @property
    def batches(self) -> int:
        """Published so far, in all lives."""
        return sum(publisher.batches for publisher in self.publishers)

    @property
    def deeds(self) -> Counter[str]:
        """How often what was done."""
        return sum((publisher.deeds for publisher in self.publishers), Counter())

    def _spec(self, publisher: Publisher) -> str:
        more: dict[str, object] = {"counting": "copies" if publisher.counts_copies else "set"}
        if sum(other.pod == publisher.pod for other in self.publishers) > 1:
            more["rank"] = publisher.number
        spec = publisher.engine.spec(publisher.pod, self.model, **more)
        proxy = self._proxies.get((publisher.pod, publisher.number))
        return spec if proxy is None else spec.replace(f":{publisher.engine.events_port}", f":{proxy.port}", 1)

    # The load

    def resume(self) -> None:
        """Publish at the fleet's rate until paused."""
        self._raise_failure()
        self._going.set()

    def pause(self) -> None:
        """When it returns the last batch is on its way. Idempotent."""
        self._going.clear()
        with self._lock:
            self._raise_failure()

    def play(self, batches: int) -> None:
        """Publish so many batches as fast as it goes. Without faults between, the same seed publishes the same."""
        assert not self._going.is_set(), "it plays by itself"
        until = self.batches + batches
        while self.batches < until:
            self._step()

    def do(self, pod: str, deed: Callable[[Publisher], list[dict[str, Any]]], rank: int = 0, **how: bool) -> int:
        """Publish a batch of chosen deeds: `fleet.do("pod-0", lambda p: [p.clear()])`. Returns its number."""
        with self._lock:
            self._expected.clear()
            publisher = self.publisher(pod, rank)
            return publisher.publish(*deed(publisher), **how)

    def thin(self) -> None:
        """Every engine evicts one copy of each block: what it holds twice it holds once then, and nothing of the rest."""
        self._evict(lambda copies: list(dict.fromkeys(copies)))

    def drain(self) -> None:
        """Every engine evicts all that it holds, copy by copy."""
        self._evict(list)

    def _evict(self, choose: Callable[[list[Copy]], list[Copy]]) -> None:
        for publisher in self.publishers:
            with self._lock:
                self._expected.clear()
                copies = choose(publisher.rank.copies)
                if copies:
                    publisher.publish(*publisher.remove(copies))

    # Faults

    def kill(self, pod: str) -> None:
        """The pod's engines are gone. The reference keeps what they held until `restart`: scorers may tell of it as stale."""
        with self._lock:
            for publisher in self._of(pod):
                publisher.kill()

    def restart(self, pod: str) -> None:
        """A new life of the pod's engines, killed before or now: they hold nothing."""
        with self._lock:
            self._expected.clear()
            for publisher in self._of(pod):
                publisher.kill()
                publisher.start()

    def cut(self, pod: str) -> None:
        """Break the pod's connections."""
        for (name, _), proxy in self._proxies.items():
            if name == pod:
                proxy.cut()

    # What scorers should answer

    def expected(self, prompt: Text) -> Answer:
        """The reference's answer as of now."""
        with self._lock:
            if prompt not in self._expected:
                reference = Reference({(publisher.pod, publisher.number): publisher.rank for publisher in self.publishers})
                self._expected[prompt] = reference.answer(prompt)
            return self._expected[prompt]

    def ask(self, client: Client, prompt: Text, **more: Any) -> Asked:
        start_s = time.monotonic()
        answer = client.score(prompt.tokens, self.model, **_isolation(prompt), **more)
        return Asked(prompt, answer, start_s, time.monotonic())

    def check(self, client: Client, trust: Sequence[str] = ("live",), prompts: Sequence[Text] | None = None) -> list[str]:
        """Ask about every prompt. Returns where the answers differ from the reference's or have another trust than these."""
        assert not self._going.is_set(), "the reference moves: pause the fleet"
        return [wrong for prompt in prompts or self.prompts for wrong in self._ask_and_compare(client, prompt, trust)]

    def settle(self, *clients: Client, timeout_s: float = 30.0, trust: Sequence[str] = ("live",)) -> None:
        """Pause, and wait until every scorer answers what the reference does. Fails with the differences."""
        self.pause()
        for number, client in enumerate(clients):
            prompts = list(self.prompts)

            def is_equal(client: Client = client, prompts: list[Text] = prompts) -> bool:
                # One prompt that differs is enough to wait on, and is asked about first the next time; in the end all count.
                for place, prompt in enumerate(prompts):
                    if self.check(client, trust, [prompt]):
                        prompts.insert(0, prompts.pop(place))
                        return False
                return True

            try:
                wait_until(is_equal, timeout_s)
            except AssertionError:
                found = self.check(client, trust)
                raise AssertionError(f"scorer {number} differs after {timeout_s} s in {len(found)} figures:\n" + "\n".join(found[:20])) from None

    def unexplained(self, asked: Asked, window_s: float) -> list[str]:
        """The figures said to be live that no state of this time before the question explains."""
        wrong = []
        with self._lock:
            for pod in asked.answer["pods"]:
                if pod["trust"] != "live":
                    continue
                publisher = self.publisher(pod["pod"], pod["rank"])
                shown = _tiers(pod)
                states = publisher.during(asked.start_s - window_s, asked.stop_s)
                if not any(list(rank.match(asked.prompt).values()) == shown for rank in states):
                    late_s = publisher.since(lambda rank, shown=shown: list(rank.match(asked.prompt).values()) == shown, asked.start_s)
                    wrong.append(f"{pod['pod']} rank {pod['rank']}: {shown} blocks by tier, true {late_s} s before: {_named(asked.prompt)}")
        return wrong

    # Inside

    def _of(self, pod: str) -> list[Publisher]:
        return [publisher for publisher in self.publishers if publisher.pod == pod]

    def _step(self) -> None:
        with self._lock:
            self._expected.clear()
            awake = [publisher for publisher in self.publishers if publisher.is_alive and publisher.pod not in self.idle]
            if awake:
                self._random.choice(awake).step()

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stopping.is_set():
            if not self._going.wait(0.05):
                due_s = time.monotonic()
                continue
            try:
                with self._lock:
                    if self._going.is_set():
                        self._step()
            except BaseException as error:  # noqa: BLE001 - raised in the test's thread
                self._failure = error
                return
            # After a stall it does not make up for all that was missed at once.
            due_s = max(due_s + 1 / self.rate, time.monotonic() - 0.1)
            self._stopping.wait(max(0.0, due_s - time.monotonic()))

    def _end(self) -> None:
        self._stopping.set()
        self._going.clear()
        self._thread.join(30)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _ask_and_compare(self, client: Client, prompt: Text, trust: Sequence[str]) -> list[str]:
        try:
            asked = self.ask(client, prompt)
        except AssertionError as error:  # it does not know the model so far
            return [str(error)]
        return self._compare(asked, trust)

    def _compare(self, asked: Asked, trust: Sequence[str]) -> list[str]:
        expected, shown = self.expected(asked.prompt), asked.answer["pods"]
        named = _named(asked.prompt)
        wrong = []
        if [pod for pod, _ in expected] != [pod["pod"] for pod in shown]:
            wrong.append(f"pods {[pod['pod'] for pod in shown]} should be {[pod for pod, _ in expected]}: {named}")
        by_name = {pod["pod"]: pod for pod in shown}
        for pod, ranks in expected:
            if pod in by_name:
                block_size = self.publisher(pod).block_size
                wrong += [f"{pod}: {difference}: {named}" for difference in _differences(by_name[pod], ranks, block_size)]
        wrong += [f"{pod['pod']} is {pod['trust']}: {named}" for pod in shown if pod["trust"] not in trust]
        return wrong


def _layout(streams: int, prefix: str, uniform: bool) -> list[tuple[str, int, int, bool]]:
    """Pod, rank, block size and counting of each stream."""
    if uniform:
        return [(f"{prefix}{number}", 0, 4, True) for number in range(streams)]
    numbers = [(0, 0), (0, 1)] if streams > 2 else [(0, 0)]
    numbers += [(number, 0) for number in range(1, streams - len(numbers) + 1)]
    last = numbers[-1][0]
    return [
        (f"{prefix}{pod}", rank, 8 if pod == last and streams > 3 else 4, not (pod == 1 and streams > 4))
        for pod, rank in numbers
    ]  # fmt: skip


def _isolation(prompt: Text) -> dict[str, Any]:
    """What a request says beside its tokens."""
    images = [[block, [[image, 0] for image in images]] for block, images in enumerate(prompt.images) if images]
    said = {"lora_name": prompt.lora, "cache_salt": prompt.salt, "block_extra_keys": images or None}
    return {key: value for key, value in said.items() if value is not None}


def _named(prompt: Text) -> str:
    return f"{prompt.tokens[:3]}… of {len(prompt.tokens)} tokens"


def _tiers(pod: dict[str, Any]) -> list[int]:
    return [pod["tiers"].get(tier, 0) for tier in WEIGHTS]


def _differences(shown: dict[str, Any], ranks: Sequence[tuple[int, list[int], float]], block_size: int) -> list[str]:
    best, tiers, score = ranks[0]
    held = sum(tiers)
    expected = {
        "rank": best,
        "tiers": tiers,
        "matched_blocks": held,
        "matched_tokens": held * block_size,
        "ranks": {str(number): sum(blocks) for number, blocks, _ in sorted(ranks)},
    }
    found = {**{key: shown[key] for key in expected}, "tiers": _tiers(shown)}
    wrong = [f"{key} {found[key]} should be {value}" for key, value in expected.items() if found[key] != value]
    if not math.isclose(shown["score"], score, abs_tol=1e-9):
        wrong.append(f"score {shown['score']} should be {score}")
    return wrong
