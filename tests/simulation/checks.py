"""What scorers answer, compared with what engines hold: a model of their blocks that shares no code with the product."""

from collections.abc import Sequence

from indexer.core.names import Trust
from scorer_api.index.prompt import Prompt
from tests.reference import Rank, Text
from tests.simulation.errors import SimulationError, Violation
from tests.simulation.watched_view import WatchedView
from tests.simulation.world import MODEL, Member, World
from tests.test_reference import folded, packed
from tests.workload import Publisher

# An answer marked live is that of a state no older than this.
LIVE_S = 1.0

Tiers = list[int]
Answers = dict[str, tuple[Trust, list[Tiers]]]


class Checks:
    """All checks of one simulation."""

    def __init__(self, world: World, texts: Sequence[Text]) -> None:
        self._world = world
        self._texts = texts
        self._prompts = [Prompt(MODEL, packed(text.tokens), text.lora, folded(text, 0, len(text.tokens) // 4)) for text in texts]
        self._publishers = {publisher.pod: publisher for publisher in world.publishers}
        self._keys = {publisher.pod: world.key_of(publisher) for publisher in world.publishers}
        self._held: dict[WatchedView, tuple[int, dict[str, list[Tiers]]]] = {}
        """View → after how many changes what its streams hold was looked up, and what that was."""
        self._known: dict[tuple[Rank, int], Tiers] = {}
        self._gpu_alone: dict[Rank, Rank] = {}
        self.compared = 0
        """Answers that were marked live."""

    def expected(self, rank: Rank, number: int) -> Tiers:
        """What a rank holds of a text, by tier."""
        found = self._known.get((rank, number))
        if found is None:
            found = self._known[rank, number] = list(rank.match(self._texts[number]).values())
        return found

    def possible(self, publisher: Publisher, rank: Rank) -> list[Rank]:
        """What may be said live of an engine that holds this. An indexer that came too late to hear that an engine offloads cannot know, after a
        clear, of blocks below the gpu."""
        if not publisher.deeds["clear"]:
            return [rank]
        if rank not in self._gpu_alone:
            alone = self._gpu_alone[rank] = publisher.empty_rank()
            alone.copies = [copy for copy in rank.copies if copy.tier == "gpu"]
        return [rank, self._gpu_alone[rank]]

    def answers(self, view: WatchedView) -> Answers:
        """Pod → how far its stream can be relied on, and what it holds of each text. What it holds is looked up again where something changed."""
        changes, held = self._held.get(view, (-1, {}))
        if changes != view.changes:
            held = self._look_up(view)
            self._held[view] = view.changes, held
        return {pod: (view.trust(self._keys[pod]), tiers) for pod, tiers in held.items()}

    def _look_up(self, view: WatchedView) -> dict[str, list[Tiers]]:
        found: dict[str, list[Tiers]] = {}
        if view.has_model(MODEL):
            for prompt in self._prompts:
                for score in view.score(prompt):
                    for rank in score.ranks:
                        found.setdefault(score.pod, []).append(list(rank.match.tiers))
        return found

    def check_live(self) -> None:
        """No answer marked live differs from all states of the last second. Raises Violation."""
        now_s = self._world.loop.time()
        for scorer in self._world.scorers:
            if not scorer.answers or scorer.view is None:
                continue
            for pod, (trust, tiers) in self.answers(scorer.view).items():
                if trust is Trust.LIVE:
                    self._check_recent(scorer, self._publishers[pod], tiers, now_s)

    def _check_recent(self, scorer: Member, publisher: Publisher, tiers: list[Tiers], now_s: float) -> None:
        self.compared += len(tiers)
        states = [possible for rank in publisher.during(now_s - LIVE_S, now_s) for possible in self.possible(publisher, rank)]
        for number, found in enumerate(tiers):
            if all(self.expected(state, number) != found for state in states):
                wanted = self.expected(states[0], number)
                raise Violation(f"{scorer.process.name} says live of {publisher.pod}, text {number}: {found}, not {wanted}, at {now_s:.3f}")

    def unsettled(self, *, is_whole: bool) -> str | None:
        """What is not as it has to be once nothing happens any more; None if all is. What is partial may lack blocks, and holds none
        that the engine does not, unless its life cannot be told from the one before. `is_whole`: nothing may be partial."""
        for publisher in self._world.publishers:
            owners = self._world.owners(publisher)
            if len(owners) != 1:
                return f"{publisher.pod} is followed by {', '.join(owners) or 'nobody'}"
        for scorer in self._world.scorers:
            if scorer.view is None:
                return f"{scorer.process.name} has not begun"
            answers = self.answers(scorer.view)
            for publisher in self._world.publishers:
                if reason := self._wrong(publisher, *answers.get(publisher.pod, (Trust.STALE, [])), is_whole=is_whole):
                    return f"{publisher.pod} in {scorer.process.name} is {reason}"
            if {pod: tiers for pod, (_, tiers) in answers.items()} != self._look_up(scorer.view):
                raise SimulationError("the view holds something else, and counted no change")
        return None

    def _wrong(self, publisher: Publisher, trust: Trust, tiers: list[Tiers], *, is_whole: bool) -> str | None:
        """What is not as it has to be in one answer."""
        if trust is not Trust.LIVE and (is_whole or trust is not Trust.PARTIAL):
            return trust
        held = publisher.moments[-1].rank
        wanted, *others = [[self.expected(rank, number) for number in range(len(self._texts))] for rank in self.possible(publisher, held)]
        if trust is Trust.LIVE and tiers not in (wanted, *others):
            return f"live with {tiers}, not {wanted}"
        engine = self._world.engine_of(publisher)
        if engine.replay is None and engine.is_taken_for_former:
            return None  # its batches go on where those of the former life ended: nobody can tell (wire-format.md, "What a subscriber survives")
        if any(sum(found) > sum(right) for found, right in zip(tiers, wanted, strict=True)):
            return f"partial with {tiers}, more than {wanted}"
        return None

    def partial(self) -> list[Publisher]:
        """Engines of which some scorer does not know everything."""
        views = [scorer.view for scorer in self._world.scorers if scorer.view is not None]
        found = {pod for view in views for pod, (trust, _) in self.answers(view).items() if trust is Trust.PARTIAL}
        return [publisher for publisher in self._world.publishers if publisher.pod in found]
