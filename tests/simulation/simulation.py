"""One simulation: the schedule's steps, one after the other, then peace, in which everything has to become right."""

import asyncio
from collections.abc import Callable
from random import Random

from tests.simulation.checks import Checks
from tests.simulation.engine import PlannedFault, ReplayFault
from tests.simulation.engine_network import EngineNetwork
from tests.simulation.errors import SimulationError, Violation
from tests.simulation.schedule import Kind, Schedule, Step
from tests.simulation.surroundings import surroundings
from tests.simulation.virtual_loop import VirtualLoop
from tests.simulation.world import Member, World
from tests.workload import Moment, Publisher

INDEXERS_MAX, SCORERS_MAX = 3, 3
# Everything is found out again within this time.
SETTLE_S = 12.0
LOOK_S = 0.1
LOOKS_BETWEEN_BATCHES = 5
JUMP_MS = 3_600_000
# Between two messages of one engine.
BETWEEN_S = 0.003


class Outcome:
    """`failure`: what was not right, None if all was. `compared`: answers that were marked live."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.failure: str | None = None
        self.compared = 0
        self.virtual_s = 0.0


def simulate(schedule: Schedule) -> Outcome:
    """Carry out a schedule. Errors of the product that end a task are failures too."""
    outcome = Outcome(schedule)
    loop, random = VirtualLoop.new(), Random(schedule.seed)
    network = EngineNetwork(loop, random)
    worlds: list[World] = []
    with surroundings(loop, random, network, lambda url, timeout_s: worlds[0].connect(url, timeout_s), in_steps=schedule.in_steps):
        try:
            loop.run(_Simulation(loop, random, network, schedule, worlds, outcome).run())
        except (Violation, SimulationError) as failure:
            outcome.failure = str(failure)
    outcome.virtual_s = loop.time()
    return outcome


class _Simulation:
    def __init__(self, loop: VirtualLoop, random: Random, network: EngineNetwork, schedule: Schedule, worlds: list[World], outcome: Outcome) -> None:
        self._loop = loop
        self._schedule = schedule
        self._outcome = outcome
        self._world = World(loop, random, network, schedule)
        worlds.append(self._world)
        self._checks = Checks(self._world, schedule.texts)
        self._repairs: list[Callable[[], None]] = []
        """What ends the faults that last."""

    async def run(self) -> None:
        world = self._world
        for _ in range(self._schedule.indexers):
            world.start_indexer()
        for _ in range(self._schedule.scorers):
            world.start_scorer()
        try:
            for step in self._schedule.steps:
                await self._wait(step.pause_s)
                await self._carry_out(step)
            await self._wait(self._schedule.rest_s)
            await self._settle()
        finally:
            self._outcome.compared = self._checks.compared
            await world.end()

    async def _wait(self, seconds: float) -> None:
        """Scorers are asked all the time."""
        until_s = self._loop.time() + seconds
        while True:
            self._checks.check_live()
            left_s = until_s - self._loop.time()
            if left_s <= 0:
                return
            await asyncio.sleep(min(LOOK_S, left_s))

    # Steps

    async def _carry_out(self, step: Step) -> None:
        world = self._world
        publisher = world.publishers[step.which % len(world.publishers)]
        match step.kind:
            case Kind.PUBLISH:
                await self._publish(publisher, step.count)
            case Kind.LOSE:
                await self._lose(publisher, step)
            case Kind.RECONNECT:
                for line in world.network.of(world.engine_of(publisher)):
                    line.drop()
            case Kind.SPOIL_REPLAYS:
                faults = list(ReplayFault)
                world.engine_of(publisher).faults.extend(PlannedFault(faults[(step.which + n) % len(faults)], step.count) for n in range(step.count))
            case Kind.RESTART_ENGINE:
                self._restart_engine(publisher, step.length_s)
            case Kind.STOP_REDIS:
                world.redis.stop()
                self._later(step.length_s, world.redis.start)
            case Kind.HANG_REDIS:
                world.redis.hang()
                self._later(step.length_s, world.redis.go_on)
            case Kind.FAIL_OVER:
                held = world.redis.model.copy()
                self._later(step.length_s, lambda: world.redis.become(held))
            case Kind.EMPTY_REDIS:
                world.redis.become(({}, {}))
            case Kind.TRIM_LOG:
                world.redis.model.xtrim(world.log_keys[step.which % len(world.log_keys)], step.count - 1)
            case Kind.JUMP_CLOCK:
                world.redis.shift_clock(JUMP_MS if step.which % 2 else -JUMP_MS)
            case Kind.ADD_INDEXER:
                if len(world.indexers) < INDEXERS_MAX:
                    world.start_indexer()
            case Kind.ADD_SCORER:
                if len(world.scorers) < SCORERS_MAX:
                    world.start_scorer()
            case Kind.RESTART_SCORER | Kind.FREEZE_SCORER if world.scorers:
                self._disturb_scorer(world.scorers[step.which % len(world.scorers)], step)
            case Kind.CUT_REDIS | Kind.LOSE_ANSWERS:
                members = [*world.indexers, *world.scorers]
                if members:
                    self._disturb_link(members[step.which % len(members)], step)
            case _ if world.indexers:
                self._disturb_indexer(world.indexers[step.which % len(world.indexers)], publisher, step)
            case _:
                pass

    def _later(self, delay_s: float, repair: Callable[[], None]) -> None:
        """End a fault after this time, or when peace begins."""
        self._repairs.append(repair)

        def end() -> None:
            if repair in self._repairs:
                self._repairs.remove(repair)
                repair()

        self._loop.later(delay_s, end)

    async def _publish(self, publisher: Publisher, count: int) -> None:
        for _ in range(count):
            if not publisher.is_alive:
                return
            before = publisher.batches
            while publisher.batches == before:
                publisher.step()
            await asyncio.sleep(BETWEEN_S)

    async def _lose(self, publisher: Publisher, step: Step) -> None:
        """Without replays nobody can know that a message was the last one: another follows."""
        engine = self._world.engine_of(publisher)
        for line in self._world.network.of(engine):
            line.losses = step.count
        await self._publish(publisher, step.count)
        for line in self._world.network.of(engine):
            line.losses = 0
        if engine.replay is None or step.which % 2:
            await self._publish(publisher, 1)

    def _restart_engine(self, publisher: Publisher, length_s: float) -> None:
        if not publisher.is_alive:
            return
        publisher.kill()
        publisher.moments.append(Moment(self._loop.time(), publisher.empty_rank()))
        self._later(length_s, publisher.start)

    def _disturb_link(self, member: Member, step: Step) -> None:
        if step.kind is Kind.CUT_REDIS:
            member.cut_redis(is_cut=True)
            self._later(step.length_s, lambda: member.cut_redis(is_cut=False))
        else:
            member.lose_answers(is_lossy=True)
            self._later(step.length_s, lambda: member.lose_answers(is_lossy=False))

    def _disturb_scorer(self, scorer: Member, step: Step) -> None:
        if step.kind is Kind.FREEZE_SCORER:
            self._freeze(scorer, step.length_s)
        else:
            self._world.stop(scorer, is_killed=step.count % 2 == 0)
            self._world.start_scorer()

    def _disturb_indexer(self, indexer: Member, publisher: Publisher, step: Step) -> None:
        world, engine = self._world, self._world.engine_of(publisher)
        match step.kind:
            case Kind.CUT_ENGINE:
                world.network.cut(indexer.process, engine)
                self._later(step.length_s, lambda: world.network.heal(indexer.process, engine))
            case Kind.RESTART_INDEXER | Kind.KILL_INDEXER:
                world.stop(indexer, is_killed=step.kind is Kind.KILL_INDEXER)
                self._later(step.length_s, self._have_an_indexer)
            case Kind.FREEZE_INDEXER:
                self._freeze(indexer, step.length_s)
            case _:
                pass

    def _have_an_indexer(self) -> None:
        if not self._world.indexers:
            self._world.start_indexer()

    def _freeze(self, member: Member, length_s: float) -> None:
        if member.process.held is None:
            self._loop.freeze(member.process)
            self._later(length_s, lambda: self._loop.thaw(member.process) if not member.process.is_dead else None)

    # Peace

    async def _settle(self) -> None:
        """End all faults. Then each scorer, and one that comes late, has to answer what the reference answers."""
        world = self._world
        repairs, self._repairs = self._repairs, []
        for repair in repairs:
            repair()
        for publisher in world.publishers:
            engine = world.engine_of(publisher)
            engine.faults.clear()
            if engine.is_heard_by_batches:
                await self._publish(publisher, 1)  # else nobody could know what was lost last
        self._have_an_indexer()
        if self._schedule.is_thorough or not world.scorers:
            world.start_scorer()
        await self._wait_until_settled()
        partial = self._checks.partial() if self._schedule.is_thorough else []
        for publisher in partial:
            if "offload" in self._world.engine_of(publisher).dialect.without:
                publisher.publish(publisher.clear())
            else:
                self._restart_engine(publisher, 0.0)  # what lies below the gpu survives a clear
                await self._wait(LOOK_S)
            await self._publish(publisher, 1)
        if partial:
            await self._wait_until_settled(is_whole=True)

    async def _wait_until_settled(self, *, is_whole: bool = False) -> None:
        until_s = self._loop.time() + SETTLE_S
        looks = 0
        while reason := self._checks.unsettled(is_whole=is_whole):
            if self._loop.time() > until_s:
                raise Violation(f"not settled after {SETTLE_S} s: {reason}")
            await self._wait(LOOK_S)
            looks += 1
            if looks % LOOKS_BETWEEN_BATCHES == 0:
                for publisher in self._world.publishers:
                    if self._world.engine_of(publisher).is_heard_by_batches:
                        await self._publish(publisher, 1)  # nothing is known of a new connection before its first batch
