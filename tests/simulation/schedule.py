"""What happens in one simulation, all of it from a seed: which processes there are, and a list of steps, each of which can be left out."""

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from random import Random

from msgspec import Struct, structs

from tests.reference import Layer, Text
from tests.simulation.dialects import DIALECTS, Dialect

BLOCK_SIZE = 4
# One schedule in so many is long. Most faults show after few steps; those that need more are found less often in the same time.
LONG_EVERY = 25
STEPS, SHORT_STEPS = range(3, 12), range(1, 4)
# After one of so many short ones nothing happens for so long that an answer that was right becomes too old.
REST_EVERY, REST_S = 50, 1.2
# One of so many short ones is thorough, which takes longer than all the rest.
THOROUGH_EVERY = 5
PAUSES_S = (0.0, 0.002, 0.01, 0.03, 0.1, 0.3)
LENGTHS_S = (0.01, 0.05, 0.2, 0.5, 0.9, 1.4)
FULL, WINDOW = Layer("full", BLOCK_SIZE), Layer("window", BLOCK_SIZE, 2 * BLOCK_SIZE)
# KV-cache groups of hybrid models.
HYBRIDS = (
    (FULL, WINDOW),
    (WINDOW, FULL, Layer("state", BLOCK_SIZE)),
    (FULL, FULL, Layer("window", BLOCK_SIZE, 3 * BLOCK_SIZE)),
    (FULL, Layer("window", 2 * BLOCK_SIZE, BLOCK_SIZE + 1)),
)
HYBRID_SHARE = 0.35
# Of schedules that have their model in two shards.
SHARDED_SHARE = 0.25
# Of engines that may dial the indexers.
DIALS_SHARE = 0.25
# Of so many schedules one applies batches in steps.
IN_STEPS_EVERY = 3


class Kind(Enum):
    """What a step does."""

    PUBLISH = auto()
    LOSE = auto()
    """Messages are published and do not arrive."""
    RECONNECT = auto()
    CUT_ENGINE = auto()
    """Nothing gets through between an engine and an indexer, and neither notices at once."""
    SPOIL_REPLAYS = auto()
    RESTART_ENGINE = auto()
    RESTART_INDEXER = auto()
    KILL_INDEXER = auto()
    ADD_INDEXER = auto()
    FREEZE_INDEXER = auto()
    RESTART_SCORER = auto()
    ADD_SCORER = auto()
    FREEZE_SCORER = auto()
    STOP_REDIS = auto()
    HANG_REDIS = auto()
    CUT_REDIS = auto()
    """One process does not reach Redis."""
    LOSE_ANSWERS = auto()
    """What one process sends to Redis arrives, and the answers do not."""
    FAIL_OVER = auto()
    """Redis is what it was a while ago."""
    EMPTY_REDIS = auto()
    TRIM_LOG = auto()
    JUMP_CLOCK = auto()
    """Redis's clock is wrong by an hour from now on."""


WEIGHTS = {
    Kind.PUBLISH: 14,
    Kind.LOSE: 4,
    Kind.RECONNECT: 2,
    Kind.CUT_ENGINE: 2,
    Kind.SPOIL_REPLAYS: 3,
    Kind.RESTART_ENGINE: 2,
    Kind.RESTART_INDEXER: 1,
    Kind.KILL_INDEXER: 2,
    Kind.ADD_INDEXER: 1.5,
    Kind.FREEZE_INDEXER: 2,
    Kind.RESTART_SCORER: 1.5,
    Kind.ADD_SCORER: 1.5,
    Kind.FREEZE_SCORER: 1,
    Kind.STOP_REDIS: 1,
    Kind.HANG_REDIS: 2,
    Kind.CUT_REDIS: 2,
    Kind.LOSE_ANSWERS: 2,
    Kind.FAIL_OVER: 3,
    Kind.EMPTY_REDIS: 0.5,
    Kind.TRIM_LOG: 1,
    Kind.JUMP_CLOCK: 0.7,
}


class Step(Struct, frozen=True):
    """`pause_s`: before it. `which`: of the engines or processes that there are. `count`, `length_s`: how much of it, and for how long."""

    kind: Kind
    pause_s: float = 0.0
    which: int = 0
    count: int = 1
    length_s: float = 0.0


class EngineKind(Struct, frozen=True):
    """`history_max`: how many batches it can replay. `layers`: the KV-cache groups of a hybrid model, none for another. `dials`: whether it dials an
    indexer, and none dials it."""

    dialect: Dialect
    has_replay: bool
    history_max: int
    layers: tuple[Layer, ...] = ()
    dials: bool = False


class Schedule(Struct, frozen=True):
    """`indexers`, `scorers`: how many there are at first. `slowness`: how many times longer than usual Redis takes. `in_steps`: whether each
    batch is applied in steps, as otherwise only large ones are. `shards`: into how many the model is split in Redis. `is_thorough`: whether, once
    nothing happens any more, a scorer comes late, and engines begin anew of which something is missing. `rest_s`: how long faults go on after the
    last step."""

    seed: int
    engines: tuple[EngineKind, ...]
    texts: tuple[Text, ...]
    indexers: int
    scorers: int
    slowness: int
    steps: tuple[Step, ...]
    in_steps: bool = False
    shards: int = 1
    is_thorough: bool = True
    rest_s: float = 0.0

    @classmethod
    def of(cls, seed: int) -> "Schedule":
        """The schedule of a seed."""
        random = Random(seed)
        random_of_layers = Random(f"{seed} layers")
        is_long = seed % LONG_EVERY == 0
        engines = tuple(_engine(random, _layers(random_of_layers)) for _ in range(random.choice((1, 1, 2) if is_long else (1, 1, 1, 1, 1, 2))))
        engines = tuple(_dialling(engines, Random(f"{seed} dials")))
        steps = [_step(random) for _ in range(random.choice(STEPS if is_long else SHORT_STEPS))]
        if not is_long:
            steps.insert(0, structs.replace(_step(random), kind=Kind.PUBLISH))  # else there is little that could go wrong
        return cls(
            seed,
            engines,
            tuple(_texts(random)),
            random.choice((1, 1, 2) if is_long else (1, 1, 1, 1, 2)),
            1,
            random.choice((1, 1, 4)),
            tuple(steps),
            random.randrange(IN_STEPS_EVERY) == 0,
            2 if Random(f"{seed} shards").random() < SHARDED_SHARE else 1,
            is_long or random.randrange(THOROUGH_EVERY) == 0,
            0.0 if is_long or random.randrange(REST_EVERY) else REST_S,
        )


def _engine(random: Random, layers: tuple[Layer, ...]) -> EngineKind:
    dialect, has_replay, history_max = random.choice(DIALECTS), random.random() < 0.75, random.choice((3, 8, 100, 100))
    return EngineKind(dialect, has_replay, history_max, layers if dialect.has_groups else ())


def _dialling(engines: Sequence[EngineKind], random: Random) -> Iterator[EngineKind]:
    """Some of them dial. Of these, all or none answer replays, as one setting says it of them; they count as the default has it."""
    dial = [engine.dialect.counts_copies and random.random() < DIALS_SHARE for engine in engines]
    has_replay = next((engine.has_replay for engine, dials in zip(engines, dial, strict=True) if dials), False)
    for engine, dials in zip(engines, dial, strict=True):
        yield structs.replace(engine, dials=True, has_replay=has_replay) if dials else engine


def _layers(random: Random) -> tuple[Layer, ...]:
    return random.choice(HYBRIDS) if random.random() < HYBRID_SHARE else ()


def _step(random: Random) -> Step:
    (kind,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
    return Step(kind, random.choice(PAUSES_S), random.randrange(12), random.randint(1, 4), random.choice(LENGTHS_S))


def _texts(random: Random) -> Sequence[Text]:
    """Prompts with common beginnings. The first ones have nothing that isolates content."""
    system = tuple(random.randrange(1000) for _ in range(2 * BLOCK_SIZE))
    found = []
    for number in range(4):
        length = random.randint(2, 5) * BLOCK_SIZE
        tokens = (*system, *(random.randrange(1000) for _ in range(length)))[: length + 1]
        lora = "ad" if number == 2 else None
        salt = "tenant" if number == 3 else None
        images = ((), ("cat",)) if number == 3 else ()
        found.append(Text(tokens, lora, salt, images))
    return found
