"""How long a service takes that is told of an engine late: from telling it to an answer that shows all that the engine has, by replay."""

import time
from statistics import median

from msgspec import Struct

from bench.connection import Connection
from bench.peers.questions import last_of
from bench.peers.sides import SIDES, Side
from bench.workload import Plan, payloads, prompt_tokens
from tests.engine import Engine

BLOCKS = 1_000_000
PROMPT_SEED, PROMPT_BLOCKS = 77, 512
ROUNDS = 3
LAST, LIVE = 10**6, 10**6 + 1
TIMEOUT_S = 60.0
POLL_S = 0.005


class LateJoin(Struct, frozen=True):
    """Medians of the rounds. `ratio`: to the peer's."""

    blocks: int
    load_s: float
    peer_s: float
    ratio: float


def measure() -> list[LateJoin]:
    """The engine answers replays from one thread of this process, to both alike."""
    own = (BLOCKS - PROMPT_BLOCKS) // 64 * 64
    batches = [payload.data for payload in payloads(Plan(seed=1, blocks=own, prefixes=((PROMPT_SEED, PROMPT_BLOCKS),)))]
    batches.append(last_of(0).data)
    found: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(ROUNDS):
        for name, side in SIDES.items():
            with Engine(history_max=len(batches) + 1) as engine, side([]) as joining:
                for data in batches:
                    engine.publish_payload(data, is_lost=True)
                found[name].append(_join_s(joining, engine))
    ours, theirs = median(found["this service"]), median(found["dynamo"])
    return [LateJoin(own + PROMPT_BLOCKS, round(ours, 2), round(theirs, 2), round(ours / theirs, 2))]


def _join_s(side: Side, engine: Engine) -> float:
    """Raises RuntimeError where not all of it is shown."""
    last, live, prompt = (side.request("json", prompt_tokens(*which)) for which in ((LAST, 1), (LIVE, 1), (PROMPT_SEED, PROMPT_BLOCKS)))
    began_s = time.monotonic()
    side.join(0, engine.events_port, engine.replay_port)
    while not engine.subscriptions():
        time.sleep(POLL_S)
    engine.publish_payload(last_of(1).data)
    with Connection(side.host, side.port) as connection:
        while any(side.matched("json", connection.ask(request)) != {0: 1} for request in (last, live)):
            if time.monotonic() - began_s > TIMEOUT_S:
                raise RuntimeError(f"{type(side).__name__} does not show what the engine has, after {engine.asked} were asked for")
            time.sleep(POLL_S)
        took_s = time.monotonic() - began_s
        if (matched := side.matched("json", connection.ask(prompt))) != {0: PROMPT_BLOCKS}:
            raise RuntimeError(f"of {PROMPT_BLOCKS} blocks {type(side).__name__} shows {matched}")
    return took_s
