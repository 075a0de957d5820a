"""Frames of hybrid engines through Redis: whoever owns their streams, and however a scorer came to know them, it says what the engine said."""

from contextlib import suppress
from itertools import islice
from typing import Any

import pytest

from tests import processes
from tests.engine_captures import CAPTURES, Capture, Played, Variant, matched_tokens, question
from tests.running import Client, Command
from tests.scenarios.redis.world import World, owners
from tests.waiting import wait_until

HYBRID = ("v028_gemma2_frontier_bs16", "v028_mistralsw_bs16", "v032_lfm2_unit_short", "v032_offgemma_bs32")


class Player:
    """Plays a capture while scorers follow. `asked`: the scorers that are asked for each row."""

    def __init__(self, capture: Capture, asked: list[Client]) -> None:
        self.capture = capture
        self.frames, self.requests = capture.frames, capture.requests
        self.engines = Variant("whole", capture, sorted({name for _, name, _ in self.frames}))
        self.asked = asked
        self.result = Played()
        self._played = 0
        self._rows = iter(self.requests)

    @property
    def specs(self) -> list[str]:
        specs = self.engines.specs(self.capture.name)
        return [",".join(f"{key}={value}" for key, value in {"pod": pod, **spec}.items()) for pod, spec in specs.items()]

    def play(self, indexer: Client, rows: int) -> None:
        """So many rows more, with this indexer as the owner. Rows that no index can know are played and not compared."""
        for request in islice(self._rows, rows):
            for _, name, (_, number, payload) in self.frames[self._played : request["frames_before"]]:
                self.engines.publish(name, int.from_bytes(number, "big"), payload)
            self._played = max(self._played, request["frames_before"])
            # A scorer learns the status of a stream some time after its blocks.
            wait_until(lambda: self.engines.is_heard(streams_of(indexer)), what=lambda: str(streams_of(indexer)))
            if request["kind"] in self.capture.unknowable:
                continue
            for number, scorer in enumerate(self.asked):
                self.result.add(str(number), request, self._matched(scorer, request))

    def _matched(self, scorer: Client, request: dict[str, Any]) -> int:
        """Once it is what the engine said, if it ever is."""
        seen: list[int] = []

        def is_right() -> bool:
            answer = scorer.http.post(f"{scorer.url}/v1/score", json=question(request, self.capture.name))
            assert answer.status_code in (200, 404), answer.text  # before its first block a model may not be known
            pod = self.engines.pod(request["engine"])
            seen.append(matched_tokens(answer.json(), pod, request["engine"]) if answer.status_code == 200 else 0)
            return seen[-1] == request["cached_tokens"]

        with suppress(AssertionError):
            wait_until(is_right, 5.0)
        return seen[-1]


def streams_of(client: Client) -> dict[tuple[str, int], dict[str, Any]]:
    pods = client.http.get(f"{client.url}/v1/pods").json()["pods"]
    return {(pod["pod"], stream["rank"]): stream for pod in pods for stream in pod["streams"]}


@pytest.mark.parametrize("capture", [capture for capture in CAPTURES if capture.name in HYBRID], ids=lambda capture: capture.name)
def test_hybrid_engines_are_predicted_through_redis(world: World, capture: Capture) -> None:
    """A scorer follows from the start, a second one loads in the middle, and another indexer takes over what the first one wrote."""
    asked: list[Client] = [*world.scorers(1)]
    player = Player(capture, asked)

    def start_indexer() -> Command:
        (indexer,) = world.start([processes.ingest(world.redis.url, *player.specs, pod_expiry_s=str(world.pod_expiry_s))])
        wait_until(lambda: owners(indexer) and None not in owners(indexer).values())
        return indexer

    try:
        first = start_indexer()
        player.play(first, capture.rows // 3)
        asked += world.scorers(1)
        player.play(first, capture.rows // 3)
        first.stop()
        player.play(start_indexer(), capture.rows)
    finally:
        player.engines.close()
    assert player.result.wrong == []
    known = [request["kind"] not in capture.unknowable for request in capture.requests]
    assert (player.result.compared["0"], player.result.compared["1"]) == (sum(known), sum(known[capture.rows // 3 :]))
