"""What scorers answer, compared with what engines hold: a model of their blocks that shares no code with the product."""

from collections.abc import Sequence

from indexer.core.names import Trust
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from tests.reference import Rank, Text
from tests.simulation.errors import Violation
from tests.simulation.world import MODEL, Member, World
from tests.test_reference import folded, packed
from tests.workload import Publisher

# An answer marked live is that of a state no older than this.
LIVE_S = 1.0

Tiers = list[int]


class Checks:
    """All checks of one simulation."""

    def __init__(self, world: World, texts: Sequence[Text]) -> None:
        self._world = world
        self._texts = texts
        self._prompts = [Prompt(MODEL, packed(text.tokens), text.lora, folded(text, 0, len(text.tokens) // 4)) for text in texts]
        self._publishers = {publisher.pod: publisher for publisher in world.publishers}
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

    def answers(self, view: View) -> dict[str, tuple[Trust, list[Tiers]]]:
        """Pod → how far its stream can be relied on, and what it holds of each text."""
        found: dict[str, tuple[Trust, list[Tiers]]] = {}
        if view.has_model(MODEL):
            for prompt in self._prompts:
                for score in view.score(prompt):
                    for rank in score.ranks:
                        found.setdefault(score.pod, (rank.trust, []))[1].append(list(rank.match.tiers))
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
        """What is not as it has to be once nothing happens any more; None if all is. What is partial may lack blocks. `is_whole`: nothing may be
        partial."""
        for publisher in self._world.publishers:
            owners = self._world.owners(publisher)
            if len(owners) != 1:
                return f"{publisher.pod} is followed by {', '.join(owners) or 'nobody'}"
        for scorer in self._world.scorers:
            answers = {} if scorer.view is None else self.answers(scorer.view)
            for publisher in self._world.publishers:
                trust, tiers = answers.get(publisher.pod, (Trust.STALE, []))
                name = f"{publisher.pod} in {scorer.process.name}"
                if trust is not Trust.LIVE and (is_whole or trust is not Trust.PARTIAL):
                    return f"{name} is {trust}"
                held = publisher.moments[-1].rank
                wanted, *others = [[self.expected(rank, number) for number in range(len(self._texts))] for rank in self.possible(publisher, held)]
                if trust is Trust.LIVE and tiers not in (wanted, *others):
                    return f"{name} is live with {tiers}, not {wanted}"
                if any(sum(found) > sum(right) for found, right in zip(tiers, wanted, strict=True)):
                    return f"{name} is partial with {tiers}, more than {wanted}"
        return None

    def partial(self) -> list[Publisher]:
        """Engines of which some scorer does not know everything."""
        views = [scorer.view for scorer in self._world.scorers if scorer.view is not None]
        found = {pod for view in views for pod, (trust, _) in self.answers(view).items() if trust is Trust.PARTIAL}
        return [publisher for publisher in self._world.publishers if publisher.pod in found]
