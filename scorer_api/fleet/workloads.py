"""Workloads: who asks what, and when. Each is deterministic by its seed. Lengths in tokens, rates in requests per second."""

import bisect
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from indexer.errors import SettingError
from scorer_api.fleet.request import Request, Segment

Stages = Sequence[tuple[float, float]]
"""Requests per second, and for how many seconds."""

# Texts have numbers: those of a run that nobody shares come after these.
_UNIQUE = 10**9


def arrivals(stages: Stages, rng: random.Random) -> Iterator[float]:
    """Times of a Poisson process."""
    start_s = 0.0
    for rate, seconds in stages:
        at_s = start_s
        while (at_s := at_s + rng.expovariate(rate)) < start_s + seconds:
            yield at_s
        start_s += seconds


class OpenLoop:
    """Requests that come whether or not earlier ones were answered. `prompt`: the segments of a prompt, its answer's length, and its user."""

    until_s = math.inf

    def __init__(self, times: Iterable[float], prompt: Callable[[int], tuple[tuple[Segment, ...], int, int]]) -> None:
        self._requests = []
        for number, at_s in enumerate(times):
            segments, answer, user = prompt(number)
            self._requests.append(Request(number, at_s, segments, (_UNIQUE + 2 * number + 1, answer), user))

    def first(self) -> list[Request]:
        return self._requests

    def next(self, done: Request) -> list[Request]:
        return []


class Rounds:
    """Stages one after the other: each begins `pause_s` after the last answer of the one before. `stages`: one workload each, of an open loop."""

    until_s = math.inf

    def __init__(self, stages: Sequence[OpenLoop], pause_s: float) -> None:
        self._later = deque(stages)
        self._pause_s = pause_s
        self._open = 0
        self._numbers = itertools.count()

    def first(self) -> list[Request]:
        return self._begin(0.0)

    def next(self, done: Request) -> list[Request]:
        assert done.done_s is not None
        self._open -= 1
        return self._begin(done.done_s + self._pause_s) if not self._open else []

    def _begin(self, at_s: float) -> list[Request]:
        requests: list[Request] = []
        while self._later and not requests:
            requests = self._later.popleft().first()
        for request in requests:
            request.number = next(self._numbers)
            request.arrives_s += at_s
            request.output = (_UNIQUE + 2 * request.number + 1, request.output_length)
        self._open = len(requests)
        return requests


def shared_prefixes(
    stages: Stages, *, groups: int, prompts: int, prefix: int, question: int, answer: int, seed: int = 0, weights: Sequence[float] | None = None
) -> OpenLoop:
    """`groups` prefixes with `prompts` questions each; a request is any of them. `weights`: of the groups, equal ones by default."""
    rng = random.Random(f"shared prefixes {seed}")
    totals = list(itertools.accumulate(weights or [1.0] * groups))

    def prompt(number: int) -> tuple[tuple[Segment, ...], int, int]:
        group = bisect.bisect(totals, rng.random() * totals[-1])
        which = rng.randrange(prompts) if prompts else number
        text = 10_000 + group * prompts + which if prompts else _UNIQUE + 2 * number
        return ((group, prefix), (text, question)), answer, group

    return OpenLoop(list(arrivals(stages, rng)), prompt)


def zipf_weights(groups: int, exponent: float = 1.0) -> list[float]:
    """The weight of each group by its rank."""
    return [1 / (rank + 1) ** exponent for rank in range(groups)]


def hot_weights(groups: int, share: float) -> list[float]:
    """One group has this share of all requests."""
    return [share, *[(1 - share) / (groups - 1)] * (groups - 1)]


def documents(stages: Stages, *, documents: int, pieces: int, piece: int, system: int, question: int, answer: int, seed: int = 0) -> OpenLoop:
    """Retrieval: a system prompt, some pieces of documents in any order, a question. Only what comes first is shared."""
    rng = random.Random(f"documents {seed}")
    weights = list(itertools.accumulate(zipf_weights(documents)))

    def prompt(number: int) -> tuple[tuple[Segment, ...], int, int]:
        chosen = [bisect.bisect(weights, rng.random() * weights[-1]) for _ in range(pieces)]
        return ((1, system), *((1_000 + each, piece) for each in chosen), (_UNIQUE + 2 * number, question)), answer, number

    return OpenLoop(list(arrivals(stages, rng)), prompt)


class ChatShape(Struct, frozen=True):
    """`turns` of a chat, or steps of an agent; `first`: of its own system text, behind `system` tokens that all share; `more`: of each turn."""

    system: int = 1_000
    first: int = 1_000
    more: int = 200
    answer: int = 200
    turns: int = 8
    think_s: float = 10.0


class Chats:
    """Users who chat, in a closed loop: each thinks, asks, waits for the answer, and so on; a chat that is over is followed by a new one.

    Each user draws by itself, so what it asks and how long it thinks do not depend on when others get their answers: policies see the same users.
    `until_s`: when the users stop asking.
    """

    def __init__(self, users: int, shape: ChatShape, until_s: float, *, ramp_s: float = 30.0, seed: int = 0) -> None:
        self._shape = shape
        self.until_s = until_s
        self._random = [random.Random(f"chats {seed} {user}") for user in range(users)]
        self._numbers = itertools.count()
        self._chats = itertools.count()
        self._turns: dict[int, int] = {}
        self._first = [self._begin(user, self._random[user].uniform(0, ramp_s)) for user in range(users)]

    def first(self) -> list[Request]:
        return self._first

    def next(self, done: Request) -> list[Request]:
        assert done.done_s is not None
        at_s = done.done_s + self._random[done.user].expovariate(1 / self._shape.think_s)
        if at_s > self.until_s:
            return []
        turn = self._turns[done.user]
        if turn >= self._shape.turns:
            return [self._begin(done.user, at_s)]
        self._turns[done.user] = turn + 1
        return [self._ask(done.user, at_s, (*done.segments, done.output))]

    def _begin(self, user: int, at_s: float) -> Request:
        self._turns[user] = 1
        return self._ask(user, at_s, ((1, self._shape.system), (1_000 + next(self._chats), self._shape.first)))

    def _ask(self, user: int, at_s: float, before: tuple[Segment, ...]) -> Request:
        number = next(self._numbers)
        draw = self._random[user].expovariate
        more = max(16, round(draw(1 / self._shape.more)))
        answer = max(8, round(draw(1 / self._shape.answer)))
        text = _UNIQUE + 2 * number
        return Request(number, at_s, (*before, (text, more)), (text + 1, answer), user)


class _Row(Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


# Tokens of a block in traces of Mooncake's format; the last one of a row is a partial block.
TRACE_BLOCK = 512


def trace(path: Path, *, speed: float = 1.0, most: int | None = None, tokens_max: int | None = None) -> OpenLoop:
    """A trace in Mooncake's format: a JSON object a line, `timestamp` in ms. `speed`: how many times as fast; `most`: so many requests.

    Longer prompts than `tokens_max` are left out. Raises SettingError for a line that is something else.
    """
    rows: list[_Row] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SettingError("--trace", str(path), f"cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if most is not None and len(rows) >= most:
            break
        try:
            row = msgspec.json.decode(line, type=_Row)
        except msgspec.DecodeError as error:
            raise SettingError("--trace", f"{path}, line {number}", f"{error}; a line is an object with timestamp, input_length, …") from None
        if len(row.hash_ids) * TRACE_BLOCK < row.input_length:
            raise SettingError("--trace", f"{path}, line {number}", "there are fewer hash_ids than blocks of 512 tokens")
        if tokens_max is None or row.input_length + row.output_length <= tokens_max:
            rows.append(row)

    def prompt(number: int) -> tuple[tuple[Segment, ...], int, int]:
        row = rows[number]
        whole, rest = divmod(row.input_length, TRACE_BLOCK)
        segments = [(each, TRACE_BLOCK) for each in row.hash_ids[:whole]]
        if rest:
            segments.append((row.hash_ids[whole], rest))
        return tuple(segments), max(1, row.output_length), row.hash_ids[1] if len(row.hash_ids) > 1 else number

    return OpenLoop([row.timestamp / 1000 / speed for row in rows], prompt)
