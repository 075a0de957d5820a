"""Compares the service's answers with the engines' own words, request by request."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from msgspec import Struct

from tests.living_engine.vllm_server import BLOCK_SIZE, Completion, VllmServer
from tests.running import Client
from tests.waiting import wait_until

VOCABULARY = range(3, 2_000)
"""All tokens but the special ones."""
WORDS = ("program", "function", "value", "line", "text", "file", "reads", "returns", "calls", "the", "each", "one", "of", "from", "when", "is")

Messages = Sequence[dict[str, str]]


class Row(Struct, frozen=True):
    """One request: the matched tokens that the service said before it was sent, and the cached tokens that the engine said in its answer.
    Or one ranking: the pod that the service ranked first, and the one whose engine had most in its cache.
    """

    kind: str
    said: int | str | None
    was: int | str
    knowable: bool = True
    """False where no index can know."""

    @property
    def is_ranking(self) -> bool:
        return isinstance(self.was, str)


def random_tokens(random: Random, count: int) -> list[int]:
    return random.choices(VOCABULARY, k=count)


def random_text(random: Random, words: int) -> str:
    return " ".join(random.choices(WORDS, k=words))


class Comparison:
    """A service, the engines that it follows, and the rows so far.

    Every request is settled before the next: the engine has published all that comes of it, and the service has applied it.
    """

    def __init__(self, service: Client, engines: Sequence[VllmServer], rows: list[Row]) -> None:
        self.service = service
        self.engines = {engine.pod: engine for engine in engines}
        (self.model,) = {engine.model for engine in engines}
        self.rows = rows

    def scores(self, tokens: Sequence[int], *, lora: str | None = None, salt: str | None = None) -> dict[str, Any]:
        """The service's answer, for all pods."""
        return self.service.score(tokens, self.model, lora_name=lora, cache_salt=salt)

    def send(
        self,
        kind: str,
        pod: str,
        tokens: Sequence[int],
        *,
        lora: str | None = None,
        salt: str | None = None,
        max_tokens: int = 1,
        knowable: bool = True,
    ) -> Completion:
        """Ask the service about these tokens, send them to this pod, compare."""
        said = _matched(self.scores(tokens, lora=lora, salt=salt), pod)
        completion = self.send_only(pod, tokens, lora=lora, salt=salt, max_tokens=max_tokens)
        self.rows.append(Row(kind, said, completion.cached_tokens, knowable))
        return completion

    def chat(self, kind: str, pod: str, messages: Messages, *, max_tokens: int) -> Completion:
        """The same for a chat: its tokens are those that the engine's /tokenize says."""
        engine = self.engines[pod]
        tokens = engine.tokenize(messages)
        said = _matched(self.scores(tokens), pod)
        completion = self._settle(pod, lambda: engine.chat(messages, max_tokens=max_tokens))
        assert completion.prompt_ids == tokens
        self.rows.append(Row(kind, said, completion.cached_tokens))
        return completion

    def ask_as_text(self, kind: str, pod: str, source: str, text: Any, *, model: str | None = None, max_tokens: int = 8) -> Completion:
        """Give the service the text itself, a prompt or the messages of a chat, then the same to the engine; compare tokens and figures."""
        engine, model = self.engines[pod], model or self.model
        response = self.service.http.post(f"{self.service.url}/v1/score", json={"model": model, source: text})
        assert response.status_code == 200, response.text
        send = engine.chat if source == "messages" else engine.complete
        completion = self._settle(pod, lambda: send(text, model=model, max_tokens=max_tokens))
        assert response.json()["tokens"] == len(completion.prompt_ids)
        self.rows.append(Row(kind, _matched(response.json(), pod), completion.cached_tokens))
        return completion

    def send_only(self, pod: str, tokens: Sequence[int], *, lora: str | None = None, salt: str | None = None, max_tokens: int = 1) -> Completion:
        """Send without asking the service first, and settle."""
        engine = self.engines[pod]
        extra = {} if salt is None else {"cache_salt": salt}
        return self._settle(pod, lambda: engine.complete(tokens, model=lora, max_tokens=max_tokens, **extra), salt)

    def probe_all(self, kind: str, tokens: Sequence[int]) -> None:
        """Ask the service once, send to every pod, compare each; and the pod ranked first with the one that had most, if one had."""
        scores = self.scores(tokens)
        cached = {pod: self.send_only(pod, tokens).cached_tokens for pod in self.engines}
        self.rows.extend(Row(kind, _matched(scores, pod), count) for pod, count in cached.items())
        most = max(cached.values())
        best = [pod for pod, count in cached.items() if count == most]
        if len(best) == 1:
            self.rows.append(Row(f"{kind}: ranked first", scores["best"], best[0]))

    def burst(self, pod: str, prompts: Sequence[Sequence[int]], *, max_tokens: int, marker: Sequence[int]) -> None:
        """Send all at once and settle. `marker`: a block of tokens never seen before, sent after them: once it is announced, so are they."""
        assert len(marker) == BLOCK_SIZE, "a marker is one block"
        engine = self.engines[pod]
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(lambda tokens: engine.complete(tokens, max_tokens=max_tokens), prompts))
        engine.complete([*marker, VOCABULARY[0]])
        engine.history.wait_for_tokens(marker)
        self.catch_up(pod)

    def catch_up(self, pod: str) -> None:
        """Wait until the service has applied all that the engine has published so far."""
        history = self.engines[pod].history
        history.read()

        def is_there() -> bool:
            pods = self.service.http.get(f"{self.service.url}/v1/pods").json()["pods"]
            return [stream["sequence"] for found in pods if found["pod"] == pod for stream in found["streams"]] == [history.last]

        wait_until(is_there, what=f"batch {history.last} of {pod} applied")

    def verify(self, kind: str, *, count_min: int = 1) -> None:
        """Every row of this kind is right, and there are so many with something in the cache."""
        rows = [row for row in self.rows if row.kind == kind]
        wrong = [row for row in rows if row.knowable and row.said != row.was]
        assert wrong == [], f"{len(wrong)} of {len(rows)} are wrong: {wrong}"
        hits = [row for row in rows if row.was]
        assert len(hits) >= count_min, f"too few hits to show anything: {len(hits)} of {len(rows)}, {count_min} were due"

    def _settle(self, pod: str, send: Callable[[], Completion], salt: str | None = None) -> Completion:
        engine = self.engines[pod]
        history = engine.history
        history.read()  # others may have asked the engine since
        before = history.stored_blocks
        completion = send()
        # The last token's own keys and values are never computed.
        computed = [*completion.prompt_ids, *completion.output_ids[:-1]]
        if engine.kind.announces_once:
            # A block taken from the cache is not stored again.
            history.wait_for_blocks(before + len(computed) // BLOCK_SIZE - completion.cached_tokens // BLOCK_SIZE)
        else:
            history.wait_for_last_block(computed, "GPU", salt=salt)
        if engine.kind.offloads:
            history.wait_for_last_block(completion.prompt_ids, "CPU", salt=salt)
        self.catch_up(pod)
        return completion


def _matched(scores: dict[str, Any], pod: str) -> int:
    (figure,) = (found["matched_tokens"] for found in scores["pods"] if found["pod"] == pod)
    return int(figure)
