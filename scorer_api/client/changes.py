"""What changed between two looks at the pods."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from scorer_api.client.errors import ClientError, NoAnswerError, StrangeAnswerError


class Stream(Protocol):
    """What is looked at of a stream's status."""

    @property
    def rank(self) -> int: ...
    @property
    def trust(self) -> str: ...
    @property
    def connected(self) -> bool: ...
    @property
    def restarts(self) -> int: ...
    @property
    def last_error(self) -> str | None: ...


class Pod(Protocol):
    """What is looked at of a pod's status."""

    @property
    def pod(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def streams(self) -> Sequence[Stream]: ...


class PodAppeared(Struct, frozen=True):
    """A pod is registered that was not, or that was with another model. What streams it has follows, as `StreamAppeared`."""

    pod: str
    model: str


class PodGone(Struct, frozen=True):
    """A pod is no longer registered; its streams are gone with it."""

    pod: str
    model: str


class StreamAppeared(Struct, frozen=True):
    """A pod has a stream that it did not have."""

    pod: str
    model: str
    rank: int
    trust: str
    connected: bool


class StreamGone(Struct, frozen=True):
    """A pod that is still there has a stream no longer."""

    pod: str
    model: str
    rank: int


class TrustChanged(Struct, frozen=True):
    """How far a stream can be relied on is another now: live, partial, stale or expired."""

    pod: str
    model: str
    rank: int
    before: str
    trust: str


class Connected(Struct, frozen=True):
    """A stream's connection is there again."""

    pod: str
    model: str
    rank: int


class Disconnected(Struct, frozen=True):
    """A stream's connection is down. `why`: the stream's last error."""

    pod: str
    model: str
    rank: int
    why: str | None


class Restarted(Struct, frozen=True):
    """The engine was restarted, and what it held is gone. `times`: since the last look."""

    pod: str
    model: str
    rank: int
    times: int


class ServiceLost(Struct, frozen=True):
    """The service does not answer; said once for each outage. What was seen before may be out of date from now on."""

    why: str


class ServiceBack(Struct, frozen=True):
    """The service answers again. What changed meanwhile follows. `away_s`: seconds between the first failed look and this one."""

    away_s: float


Change = PodAppeared | PodGone | StreamAppeared | StreamGone | TrustChanged | Connected | Disconnected | Restarted | ServiceLost | ServiceBack
"""All that `watch` yields."""

_Seen = dict[tuple[str, str], dict[int, Stream]]


class Watch:
    """Turns looks at the pods into changes. `model`: pods of this model only."""

    def __init__(self, model: str | None) -> None:
        self._model = model
        self._seen: _Seen = {}
        self._lost_at_s: float | None = None

    def seen(self, pods: Iterable[Pod], at_s: float) -> Iterator[Change]:
        """The pods as they are at this time: what changed since the last look."""
        if self._lost_at_s is not None:
            yield ServiceBack(at_s - self._lost_at_s)
            self._lost_at_s = None
        now: _Seen = {}
        for status in pods:
            if self._model in (None, status.model):
                now.setdefault((status.pod, status.model), {}).update((stream.rank, stream) for stream in status.streams)
        before, self._seen = self._seen, now
        for pod, model in before.keys() - now.keys():
            yield PodGone(pod, model)
        for (pod, model), streams in now.items():
            if (pod, model) not in before:
                yield PodAppeared(pod, model)
            yield from _changes(pod, model, before.get((pod, model), {}), streams)

    def failed(self, error: ClientError, at_s: float) -> Iterator[Change]:
        """A look that failed at this time. Raises the error where looking again would be no use."""
        if not is_outage(error):
            raise error
        if self._lost_at_s is None:
            self._lost_at_s = at_s
            yield ServiceLost(str(error))


def is_outage(error: ClientError) -> bool:
    """Whether this may pass by itself. A wrong token or a wrong address does not."""
    if isinstance(error, NoAnswerError):
        return True
    status = error.status if isinstance(error, StrangeAnswerError) else getattr(error, "status", 0)
    return status >= 500 or status == 429


def _changes(pod: str, model: str, before: dict[int, Stream], now: dict[int, Stream]) -> Iterator[Change]:
    for rank in sorted(before.keys() - now.keys()):
        yield StreamGone(pod, model, rank)
    for rank, stream in sorted(now.items()):
        known = before.get(rank)
        if known is None:
            yield StreamAppeared(pod, model, rank, stream.trust, stream.connected)
            continue
        if stream.restarts > known.restarts:
            yield Restarted(pod, model, rank, stream.restarts - known.restarts)
        if stream.connected != known.connected:
            yield Connected(pod, model, rank) if stream.connected else Disconnected(pod, model, rank, stream.last_error)
        if stream.trust != known.trust:
            yield TrustChanged(pod, model, rank, known.trust, stream.trust)
