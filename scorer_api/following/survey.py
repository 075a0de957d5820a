"""Surveys of one shard of a model: every second, the states of all its streams, and until when their owners confirm them.

An idle stream never shows that its last entry was lost: only its state does. So states are compared with what is held, once the log has been read up
to the survey's offset. Only then does the trust of that survey take effect: what is held is then what the owner confirmed.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping

from msgspec import Struct

from indexer.core.names import StreamKey
from indexer.errors import StoreError
from indexer.store.health import UNREACHABLE
from indexer.store.keyspace import stream_of
from indexer.store.reader import LogOffset, Survey, SurveyedState
from scorer_api.following.followed_model import FollowedModel, FollowerContext
from scorer_api.following.followed_stream import FollowedStream, published_status
from scorer_api.following.reloader import RETRY_S, Reloader
from scorer_api.following.signs import Signs, Terms

log = logging.getLogger(__name__)

SURVEY_S = 1.0
# After a survey that was asked for, so that many requests for one make a single one.
PAUSE_S = 0.002
NEVER = float("-inf")

# Among the signs of owners, which else are named by streams.
LOG = ""


class ModelSurvey(Struct, frozen=True):
    """All surveys of one round. `trusted_until_s`: by the monotonic clock, by the names of streams."""

    parts: list[Survey]
    trusted_until_s: dict[str, float]


class Surveyor:
    """`run` ends with its cancellation. `is_due`: set it for a survey at once. `latest`: the last one that was not compared yet."""

    def __init__(self, model: FollowedModel, context: FollowerContext, reloader: Reloader) -> None:
        self.is_due = asyncio.Event()
        self.has_begun = asyncio.Event()
        self.has_compared = False
        self.latest: ModelSurvey | None = None
        self._model = model
        self._context = context
        self._reader, self._view = context.reader, context.view
        self._reloader = reloader
        self._terms = Terms(context.settings.lease_s)
        self._owner_signs, self._load_signs = Signs(), Signs()
        self._node = ""
        self._by_other_clock: dict[str, int] = {}
        """The times in the first survey of this node: they may be by the clock of the node before. Each counts once it was renewed."""

    async def run(self) -> None:
        """Survey for good."""
        while True:
            self.is_due.clear()
            try:
                await self._survey()
                await self._read_pod_loads()
            except StoreError:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                async with asyncio.timeout(SURVEY_S):
                    await self.is_due.wait()
                await asyncio.sleep(PAUSE_S)
            except TimeoutError:
                pass

    async def _survey(self) -> None:
        model, reader = self._model, self._reader
        offset, asked_s, server_epoch = model.offset, time.monotonic(), reader.server_epoch
        surveys = await reader.survey(model.shard, [stream.key for stream in model.streams.values()])
        new = _streams_of(model.name, surveys[-1].trusted.keys() - model.streams.keys())
        if new:
            surveys += await reader.survey(model.shard, new)
        if server_epoch != reader.server_epoch:
            raise StoreError(UNREACHABLE)  # of two servers, which have two clocks
        if any(survey.node != surveys[0].node for survey in surveys):
            self.is_due.set()  # the model has just moved to another node
            return
        if not self.has_begun.is_set():
            model.offset, model.server_epoch = surveys[0].offset, server_epoch
        elif server_epoch != model.server_epoch:
            self._move(server_epoch, surveys[0].offset)
        elif surveys[0].offset < offset:
            self._go_back(surveys[0].offset, surveys[-1].trusted)
        trusted = self._by_this_clock(surveys[-1])
        clock_s = self._note_time(surveys, trusted, asked_s)
        self._note_states(surveys)
        self.latest = ModelSurvey(surveys, self._terms.note(trusted, clock_s, asked_s))
        for name, stream in model.streams.items():
            # A shorter term counts at once, a longer one only when the survey takes force.
            if (until_s := self.latest.trusted_until_s.get(name, NEVER)) < stream.trusted_until_s:
                stream.trusted_until_s = until_s
                model.set_trust(stream)
        self.has_begun.set()

    def _note_states(self, surveys: list[Survey]) -> None:
        """Load streams that were not known, and note what owners publish of each."""
        now_s = time.monotonic()
        ready: dict[str, bool] = {}
        for survey in surveys:
            for name, state in survey.states.items():
                stream = self._model.streams.get(name)
                if stream is None:
                    if state.version is None:
                        continue
                    stream = self._model.open(name, stream_of(self._model.name, name))
                    self._reloader.load(stream, "new")
                stream.note_status(state.status, now_s)
                if (published := published_status(stream)) is not None:
                    self._view.note_dropped(stream.key, published.drops_last_block)
                    ready[stream.key.pod] = published.ready and ready.get(stream.key.pod, True)
                if state.version is not None:
                    stream.incarnation, stream.missing_since_s = survey.incarnation, None
        for pod, is_ready in ready.items():
            self._view.note_ready(self._model.name, pod, is_ready)

    async def _read_pod_loads(self) -> None:
        """How busy the pods are."""
        asked_s = time.monotonic()
        pods = list(dict.fromkeys(stream.key.pod for stream in self._model.streams.values()))
        now_ms, loads = await self._reader.loads(self._model.name, pods)
        measured_s = self._load_signs.note({pod: at_ms for pod, (_, at_ms) in loads.items()}, asked_s - now_ms / 1000, asked_s)
        for pod, (load, _) in loads.items():
            self._view.loads.note(self._model.name, pod, load, measured_s[pod])

    def _go_back(self, offset: LogOffset, trusted: Mapping[str, int]) -> None:
        """The log ends before the offset that was reached: Redis is older than what was read, or empty. Or its clock was set back, and owners wrote
        everything again since: then they confirm it again, too."""
        log.warning("log went back", extra={"model": self._model.name})
        self._forget_signs()
        self._model.go_to(offset)
        for name, stream in self._model.streams.items():
            stream.may_be_newer, stream.confirmed_until_ms = True, trusted.get(name)

    def _move(self, server_epoch: int, offset: LogOffset) -> None:
        """Another server is Redis now. Its log may lack the end of the former one and continue otherwise: offsets in one say nothing of the other."""
        self._model.server_epoch = server_epoch
        self.latest = None
        log.warning("log is another server's", extra={"model": self._model.name})
        self._forget_signs()
        self._model.go_to(offset)
        for stream in self._model.streams.values():
            stream.is_of_former_server = True

    # Time

    def _forget_signs(self) -> None:
        """What is there now need not be newer than what was: it is another's, or older."""
        self._owner_signs, self._load_signs = Signs(), Signs()

    def _by_this_clock(self, survey: Survey) -> dict[str, int]:
        """The streams that are trusted by the clock of the node that was asked."""
        if survey.node != self._node:
            self._node, self._by_other_clock = survey.node, survey.trusted
            self._forget_signs()
        self._by_other_clock = {name: until_ms for name, until_ms in self._by_other_clock.items() if survey.trusted.get(name) == until_ms}
        return {name: until_ms for name, until_ms in survey.trusted.items() if name not in self._by_other_clock}

    def _note_time(self, surveys: list[Survey], trusted: dict[str, int], asked_s: float) -> float:
        """By the clock as it was when we asked: trust is never taken to last longer than it does. Returns the difference of clocks."""
        clock_s = self._model.clock_s = asked_s - surveys[0].now_ms / 1000
        lease_ms = int(self._context.settings.lease_s * 1000)
        signs = {LOG: surveys[0].offset[0], **{name: until_ms - lease_ms for name, until_ms in trusted.items()}}
        self._view.note_heartbeat(max(self._owner_signs.note(signs, clock_s, asked_s).values()))
        return clock_s

    # Comparing

    def compare(self, survey: ModelSurvey) -> None:
        """All that was in the log when this survey was made has been read: compare its states with what is held, and apply its trust."""
        if self.latest is survey:
            self.latest = None
        for part in survey.parts:
            self._model.offset = max(self._model.offset, part.offset)
            for name, state in part.states.items():
                stream = self._model.streams.get(name)
                if stream is None or name in self._model.loads or stream.offset > part.offset:
                    continue
                if state.version is None:
                    self._note_missing(stream, part)
                elif stream.version is None:
                    self._reloader.load(stream, "new")
                elif stream.differs(state):
                    self._note_different(stream, state, survey.parts[-1].trusted.get(name))
        self.has_compared = True
        for name, stream in self._model.streams.items():
            if name not in self._model.loads:
                stream.trusted_until_s = survey.trusted_until_s.get(name, NEVER)
                self._model.set_trust(stream)

    def _note_different(self, stream: FollowedStream, state: SurveyedState, until_ms: int | None) -> None:
        is_confirmed = until_ms is not None and until_ms != stream.confirmed_until_ms
        if stream.is_ahead_of(state) and not (stream.may_be_newer and is_confirmed):
            stream.is_lost = True
            self._model.set_trust(stream)
        else:
            self._reloader.mark_lost(stream, "survey")

    def _note_missing(self, stream: FollowedStream, survey: Survey) -> None:
        """There is no state of it: it was deleted, unless that is how a Redis looks that lost everything. Then its owner will write it again."""
        now_s = time.monotonic()
        if stream.trusted_until_s > now_s:
            return
        if stream.missing_since_s is None:
            stream.missing_since_s = now_s
        is_deleted = stream.incarnation is None or survey.incarnation == stream.incarnation
        if is_deleted or stream.version is None or now_s - stream.missing_since_s > self._context.settings.pod_expiry_s:
            self._model.remove(stream, stream.offset)


def _streams_of(model: str, names: Iterable[str]) -> list[StreamKey]:
    """Those that are names of streams; anything else is skipped."""
    found = []
    for name in names:
        try:
            found.append(stream_of(model, name))
        except ValueError:
            continue
    return found
