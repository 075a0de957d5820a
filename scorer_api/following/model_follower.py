"""Following one model: its log into the view, and every second a look at where all its streams stand.

log      XREAD in paces ──▶ judge ──▶ apply, or empty, or close, or load
survey   every second: who is vouched for until when; states compared with what is held, since an idle stream never shows a lost last entry
load     peek at the state, read the blocks into room of their own, apply the entries since, exchange for what was held
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Protocol

import msgspec

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.errors import StoreError
from indexer.store.health import UNREACHABLE
from indexer.store.keyspace import stream_id, stream_of
from indexer.store.reader import START, Place, Reader, Stand, State, Survey
from indexer.store.records import Entry, change_of, decode_entry
from scorer_api.following.followed import Followed, Verdict, judge, stand_after
from scorer_api.following.loading import Loading
from scorer_api.index.holding import Holding
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics

log = logging.getLogger(__name__)

# Unpaced, each entry costs a call of its own.
PACE_S = 0.002
ENTRIES_MAX = 256
WAIT_MS = 500
# Entries are applied so long at a stretch before requests have their turn.
TURN_S = 0.002
SURVEY_S = 1.0
NEVER = float("-inf")
# Pause while Redis does not answer.
RETRY_S = 0.1


class Shared(Protocol):
    """What all models' followers have in common."""

    reader: Reader
    view: View
    settings: Settings
    metrics: FollowerMetrics

    def loads_of(self, model: str) -> asyncio.Semaphore:
        """How many streams may be loaded at a time."""

    def give_back(self, holding: Holding | None) -> None:
        """What a stream held is not needed any more."""


class ModelFollower:
    """See the module. `run` ends with its cancellation; `close` forgets all streams then."""

    def __init__(self, model: str, shared: Shared) -> None:
        self.model = model
        self.streams: dict[str, Followed] = {}
        self.missing_since_s: float | None = None
        self._shared = shared
        self._reader, self._view, self._metrics = shared.reader, shared.view, shared.metrics
        self._registered: frozenset[str] = frozenset()
        self._place: Place = START
        self._life = 0
        """Counts how often the log turned out to be another one."""
        self._server = 0
        """The reader's life to which all below belongs."""
        self._surveys: list[Survey] = []
        self._vouched: dict[str, float] = {}
        """Until when each stream is vouched for, by the surveys above, …"""
        self._in_force: dict[str, float] = {}
        """… and by those up to whose place the log has been read: only then what is held is what was vouched for."""
        self._clock_s: float | None = None
        self._node = ""
        self._of_another_clock: dict[str, int] = {}
        """What the first survey of this node said of vouching: it may be by the clock of the node before. It counts once it was renewed."""
        self._survey_due = asyncio.Event()
        self._begun = asyncio.Event()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._is_compared = False
        self._is_settled = False

    @property
    def is_settled(self) -> bool:
        """Whether all that there was at first is loaded."""
        if not self._is_settled:
            self._is_settled = self._is_compared and not self._loads
        return self._is_settled

    async def run(self) -> None:
        """Follow for good."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._survey_again_and_again(), name=f"survey {self.model}")
            tasks.create_task(self._follow(), name=f"log {self.model}")

    def close(self) -> None:
        """Forget all streams, after the end of `run`."""
        for name in list(self.streams):
            self._close(self.streams[name])

    def expect(self, registered: Iterable[StreamKey]) -> None:
        """These streams are registered: they are shown even while nothing is known of them."""
        keys = {stream_id(key): key for key in registered}
        self._registered = frozenset(keys)
        for name, key in keys.items():
            if name not in self.streams:
                self._open(name, key)
        for name, followed in list(self.streams.items()):
            if name not in keys and followed.stand is None and name not in self._loads:
                self._close(followed)

    # The log

    async def _follow(self) -> None:
        await self._begun.wait()
        was_away = False
        wait_ms = min(WAIT_MS, int(self._shared.settings.redis_timeout_s * 500))
        while True:
            surveys, vouched, life = self._surveys, self._vouched, self._life
            if self._reader.life != self._server:
                self._survey_due.set()  # it finds out where this server's log is
                await asyncio.sleep(RETRY_S)
                continue
            try:
                entries = await self._reader.entries(self.model, self._place, ENTRIES_MAX, 0 if surveys else wait_ms)
            except StoreError:
                was_away = True
                await asyncio.sleep(RETRY_S)
                continue
            if was_away:
                was_away = False
                self._survey_due.set()
            if self._reader.life != self._server:
                continue
            if await self._take(entries, life) and surveys and len(entries) < ENTRIES_MAX:
                self._compare(surveys, vouched)
            await asyncio.sleep(PACE_S)

    async def _take(self, entries: list[tuple[Place, bytes | None]], life: int) -> bool:
        """Returns whether these are still of the log that there is."""
        began_s = time.monotonic()
        for place, raw in entries:
            if life != self._life:
                break
            self._enter(place, raw)
            self._place = place
            if time.monotonic() - began_s > TURN_S:
                await asyncio.sleep(0)
                began_s = time.monotonic()
        if entries and life == self._life:
            self._hear(self._place[0])
        return life == self._life

    def _hear(self, at_ms: int) -> None:
        """An owner gave word at this time of Redis."""
        if self._clock_s is not None:
            self._view.note_heartbeat(min(time.monotonic(), self._clock_s + at_ms / 1000))

    def _enter(self, place: Place, raw: bytes | None) -> None:
        outcomes = self._metrics.entries
        try:
            entry = decode_entry(raw or b"")
            followed = self.streams.get(entry.stream)
            key = stream_of(self.model, entry.stream) if followed is None else followed.key
        except (msgspec.MsgspecError, ValueError):
            outcomes["unreadable"].inc()
            return
        if followed is None:
            if judge(None, entry) is Verdict.CLOSE:
                outcomes["known"].inc()
                return
            followed = self._open(entry.stream, key)
            self._survey_due.set()
        if place <= followed.place:
            outcomes["known"].inc()
            return
        self._carry_out(followed, place, entry)

    def _carry_out(self, followed: Followed, place: Place, entry: Entry) -> None:
        outcomes = self._metrics.entries
        verdict = judge(followed.stand, entry)
        if verdict is Verdict.CLOSE:
            outcomes["closed"].inc()
            self._vanish(followed, place)
        elif verdict is Verdict.EMPTY:
            outcomes["emptied"].inc()
            self._settle(followed, None, stand_after(entry), place, entry.trust)
        elif entry.stream in self._loads:
            outcomes["kept"].inc()
            if followed.kept is not None:
                followed.keep(place, entry)
        elif verdict is Verdict.APPLY:
            self._apply(followed, place, entry)
        elif verdict is Verdict.LOAD:
            outcomes["reload"].inc()
            self._load(followed, "new" if followed.stand is None else "reload")
        else:
            outcomes["lost"].inc()
            self._lose(followed, "lost")

    def _apply(self, followed: Followed, place: Place, entry: Entry) -> None:
        try:
            change = change_of(entry)
        except ValueError:
            self._metrics.entries["unreadable"].inc()
            self._lose(followed, "lost")
            return
        if change and entry.block_size is not None:
            self._view.append(followed.key, entry.block_size, change)
        followed.stand, followed.place = stand_after(entry), place
        if entry.trust is not followed.trust:
            followed.trust = entry.trust
            self._vouch(followed)
        self._metrics.entries["applied"].inc()

    # Surveys

    async def _survey_again_and_again(self) -> None:
        while True:
            self._survey_due.clear()
            try:
                await self._survey()
                await self._read_loads()
            except StoreError:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                async with asyncio.timeout(SURVEY_S):
                    await self._survey_due.wait()
                await asyncio.sleep(PACE_S)
            except TimeoutError:
                pass

    async def _survey(self) -> None:
        place, asked_s, server = self._place, time.monotonic(), self._reader.life
        surveys = await self._reader.survey(self.model, [followed.key for followed in self.streams.values()])
        new = _streams(self.model, surveys[-1].vouched.keys() - self.streams.keys())
        if new:
            surveys += await self._reader.survey(self.model, new)
        if server != self._reader.life:
            raise StoreError(UNREACHABLE)  # of two servers, which have two clocks
        if any(survey.node != surveys[0].node for survey in surveys):
            self._survey_due.set()  # the model has just moved to another node
            return
        if not self._begun.is_set():
            self._place, self._server = surveys[0].place, server
        elif server != self._server:
            self._move(server, surveys[0].place)
        elif surveys[0].place < place:
            self._begin_again(surveys[0].place)
        vouched = self._by_this_clock(surveys[-1])
        self._note_time(surveys, vouched, asked_s)
        now_s = time.monotonic()
        for survey in surveys:
            for name, state in survey.states.items():
                followed = self.streams.get(name)
                if followed is None:
                    if state.stand is None:
                        continue
                    followed = self._open(name, stream_of(self.model, name))
                    self._load(followed, "new")
                followed.note_status(state.status, now_s)
                if state.stand is not None:
                    followed.incarnation, followed.missing_since_s = survey.incarnation, None
        assert self._clock_s is not None, "a survey tells the time"
        self._vouched = {name: self._clock_s + until_ms / 1000 for name, until_ms in vouched.items()}
        for name, followed in self.streams.items():
            if (until_s := self._vouched.get(name, NEVER)) < followed.vouched_until_s:
                followed.vouched_until_s = until_s
                self._vouch(followed)
        self._surveys = surveys
        self._begun.set()

    async def _read_loads(self) -> None:
        asked_s = time.monotonic()
        pods = list(dict.fromkeys(followed.key.pod for followed in self.streams.values()))
        for pod, (load, age_s) in (await self._reader.loads(self.model, pods)).items():
            self._view.loads.note(self.model, pod, load, asked_s - age_s)

    def _begin_again(self, place: Place) -> None:
        """The log ends before the place that was reached: Redis is older than what was read, or empty."""
        log.warning("log went back", extra={"model": self.model})
        self._go_to(place)
        for followed in self.streams.values():
            followed.is_newer = True

    def _move(self, server: int, place: Place) -> None:
        """Another server is Redis now. Its log may lack the end of the former's, and go on in its own way: places in one say nothing of the other."""
        self._server = server
        self._surveys = []
        log.warning("log is another server's", extra={"model": self.model})
        self._go_to(place)
        for followed in self.streams.values():
            followed.has_moved = True

    def _go_to(self, place: Place) -> None:
        """Read on from this place of what is another log."""
        self._place = place
        self._life += 1
        for followed in self.streams.values():
            followed.place = min(followed.place, place)
            followed.incarnation = b""
            followed.must_load_again = followed.kept is not None

    def _by_this_clock(self, survey: Survey) -> dict[str, int]:
        """What is vouched for by the clock of the node that was asked."""
        if survey.node != self._node:
            self._node, self._of_another_clock = survey.node, survey.vouched
        self._of_another_clock = {name: until_ms for name, until_ms in self._of_another_clock.items() if survey.vouched.get(name) == until_ms}
        return {name: until_ms for name, until_ms in survey.vouched.items() if name not in self._of_another_clock}

    def _note_time(self, surveys: list[Survey], vouched: dict[str, int], asked_s: float) -> None:
        """By the clock as it was when we asked: what is vouched for is never taken to last longer than it does."""
        self._clock_s = asked_s - surveys[0].now_ms / 1000
        lease_ms = int(self._shared.settings.lease_s * 1000)
        self._hear(max([surveys[0].place[0], *(until_ms - lease_ms for until_ms in vouched.values())]))

    def _compare(self, surveys: list[Survey], vouched: dict[str, float]) -> None:
        """All that was in the log when these surveys were made has been read."""
        if self._surveys is surveys:
            self._surveys = []
        for survey in surveys:
            self._place = max(self._place, survey.place)
            for name, state in survey.states.items():
                followed = self.streams.get(name)
                if followed is None or name in self._loads or followed.place > survey.place:
                    continue
                if state.stand is None:
                    self._miss(followed, survey)
                elif followed.stand is None:
                    self._load(followed, "new")
                elif followed.differs(state):
                    self._doubt(followed, state)
        self._is_compared = True
        self._in_force = vouched
        for name, followed in self.streams.items():
            if name not in self._loads:
                followed.vouched_until_s = vouched.get(name, NEVER)
                self._vouch(followed)

    def _doubt(self, followed: Followed, state: State) -> None:
        if followed.is_ahead(state):
            followed.is_lost = True
            self._vouch(followed)
        else:
            self._lose(followed, "survey")

    def _miss(self, followed: Followed, survey: Survey) -> None:
        """There is no state of it: it was deleted, unless that is how a Redis looks that lost everything. Then its owner will write it again."""
        now_s = time.monotonic()
        if followed.vouched_until_s > now_s:
            return
        if followed.missing_since_s is None:
            followed.missing_since_s = now_s
        is_deleted = followed.incarnation is None or survey.incarnation == followed.incarnation
        if is_deleted or followed.stand is None or now_s - followed.missing_since_s > self._shared.settings.pod_expiry_s:
            self._vanish(followed, followed.place)

    # Loading

    def _lose(self, followed: Followed, reason: str) -> None:
        """What is held does not count until it is loaded again."""
        followed.is_lost = True
        self._vouch(followed)
        self._load(followed, reason)

    def _load(self, followed: Followed, reason: str) -> None:
        name = stream_id(followed.key)
        assert name not in self._loads, "a stream is loaded once at a time"
        self._metrics.loads[reason].inc()
        self._metrics.loading.inc()
        task = self._tasks.create_task(self._load_until_done(followed), name=f"load {name} of {self.model}")
        self._loads[name] = task
        task.add_done_callback(lambda _: self._metrics.loading.dec())

    async def _load_until_done(self, followed: Followed) -> None:
        try:
            while not await self._load_once(followed):
                self._metrics.loads["again"].inc()
        finally:
            if self._loads.get(stream_id(followed.key)) is asyncio.current_task():
                self._stop_loading(followed)

    async def _load_once(self, followed: Followed) -> bool:
        """Returns whether that is done; if not, something came in between."""
        async with self._shared.loads_of(self.model):
            loading = Loading(followed, self._shared)
            try:
                await loading.read()
            except StoreError:
                await asyncio.sleep(RETRY_S)
            finally:
                if not loading.is_whole:
                    self._shared.give_back(loading.holding)
            # Nothing waits from the last entry to the exchange.
            if loading.is_whole and loading.stand is not None:
                self._settle(followed, loading.holding, loading.stand, loading.place, loading.trust)
                if loading.hash_seed is not None:
                    self._view.note_seed(followed.key, loading.hash_seed)
            elif loading.is_missing and followed.stand is None and stream_id(followed.key) not in self._registered:
                self._close(followed)
            return loading.is_whole

    # What is known of a stream

    def _open(self, name: str, key: StreamKey) -> Followed:
        followed = self.streams[name] = Followed(key)
        self._view.open(key)
        self._vouch(followed)
        return followed

    def _settle(self, followed: Followed, holding: Holding | None, stand: Stand | None, place: Place, trust: Trust) -> None:
        """From now on this is what the stream holds."""
        self._stop_loading(followed)
        self._shared.give_back(self._view.exchange(followed.key, holding))
        followed.stand, followed.place, followed.trust = stand, max(place, followed.place), trust
        followed.is_lost = followed.is_newer = followed.has_moved = False
        self._vouch(followed)

    def _vanish(self, followed: Followed, place: Place) -> None:
        """It is deleted. While it is registered it is shown all the same, holding nothing."""
        if stream_id(followed.key) in self._registered:
            self._settle(followed, None, None, place, Trust.STALE)
            followed.note_status(None, time.monotonic())
        else:
            self._close(followed)

    def _close(self, followed: Followed) -> None:
        self._stop_loading(followed)
        self._shared.give_back(self._view.exchange(followed.key, None))
        self._view.close(followed.key)
        del self.streams[stream_id(followed.key)]

    def _stop_loading(self, followed: Followed) -> None:
        task = self._loads.pop(stream_id(followed.key), None)
        followed.stop_keeping()
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _vouch(self, followed: Followed) -> None:
        self._view.vouch(followed.key, Trust.STALE if followed.is_lost else followed.trust, followed.vouched_until_s)


def _streams(model: str, names: Iterable[str]) -> list[StreamKey]:
    """Those that are names of streams; what somebody else wrote is passed over."""
    found = []
    for name in names:
        try:
            found.append(stream_of(model, name))
        except ValueError:
            continue
    return found
