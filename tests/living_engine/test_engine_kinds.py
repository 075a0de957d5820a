"""The same comparison with engines whose hits follow more rules: a hybrid model, speculative decoding, blocks offloaded to the host's memory.

Each kind is one engine with a model of its own; one service follows them all.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from tests.living_engine.comparison import Comparison, Row, random_tokens
from tests.living_engine.vllm_server import BLOCK_SIZE, HYBRID, NGRAM, OFFLOADED_BLOCKS, OFFLOADING, POOL_BLOCKS, SPECULATIVE_TOKENS, VllmServer
from tests.running import Command
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

KINDS = {"H": HYBRID, "N": NGRAM, "O": OFFLOADING}


@pytest.fixture(scope="module")
def comparisons(models: Path, tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> Iterator[dict[str, Comparison]]:
    """By pod."""
    folder = tmp_path_factory.mktemp("kinds")
    with ExitStack() as stack:
        engines = [stack.enter_context(VllmServer(pod, models, folder / pod, kind=kind)).start() for pod, kind in KINDS.items()]
        for engine in engines:
            engine.wait_up()
        service = stack.enter_context(Command("serve", "--port", "0", *(word for engine in engines for word in ("--engine", engine.spec()))))
        service.wait_url()
        wait_until(lambda: service.http.get(f"{service.url}/readyz").json()["status"] == "ready")
        yield {engine.pod: Comparison(service, [engine], rows) for engine in engines}


def test_a_hybrid_model(comparisons: dict[str, Comparison]) -> None:
    """Where the window group lost its blocks a hit ends earlier than the full group's blocks do."""
    random = Random(30)
    comparison, kind = comparisons["H"], "hybrid model"
    history = comparison.engines["H"].history
    prompts = [random_tokens(random, random.randrange(60, 500)) for _ in range(8)]
    shorter = 0
    for number in range(90):
        prompt = prompts[min(random.randrange(8), random.randrange(8))]
        prompt = [*prompt[: random.randrange(20, len(prompt) + 1)], *random_tokens(random, random.choice([0, 0, 1, 20, 90]))]
        held = history.held_blocks(prompt[:-1])
        completion = comparison.send(kind, "H", prompt, max_tokens=random.choice([1, 3, 30]))
        shorter += completion.cached_tokens < held * BLOCK_SIZE
        if number % 15 == 0:  # one that goes on where the answer ended
            comparison.send(kind, "H", [*prompt, *completion.output_ids, *random_tokens(random, 5)])
    comparison.verify(kind, count_min=30)
    assert shorter >= 5, "the window group decides something"
    groups = comparison.service.stream("H")["groups"]
    assert [(group["kind"], group["window"]) for group in groups] == [("window", 72), ("full", None)]


def test_ngram_speculation(comparisons: dict[str, Comparison]) -> None:
    """Several tokens are accepted in one step, and some are refused: the blocks that they fill are announced as if they came one by one, but for one
    that the last step fills."""
    random = Random(31)
    comparison, kind = comparisons["N"], "ngram speculation"
    prompts = [random_tokens(random, random.randrange(20, 120)) for _ in range(8)]
    for number in range(40):
        prompt = prompts[number % 8][: random.randrange(20, 121)]
        completion = comparison.send(kind, "N", prompt, max_tokens=decided(len(prompt), random.choice([5, 17, 40])))
        whole = [*prompt, *completion.output_ids]
        for missing in random.sample(range(20), 2):
            follow_up = [*whole[: len(whole) - missing], *random_tokens(random, 3)]
            comparison.send(kind, "N", follow_up, max_tokens=decided(len(follow_up), 8))
    comparison.verify(kind, count_min=60)
    drafted, accepted = (counter(comparison.engines["N"], f"vllm:spec_decode_num_{name}_tokens_total") for name in ("draft", "accepted"))
    assert drafted > accepted > 100


def decided(prompt_tokens: int, output_tokens: int) -> int:
    """So many output tokens, or a few more, with which no block is filled or not by how many tokens the last step accepts."""
    while (prompt_tokens + output_tokens - 1) % BLOCK_SIZE < SPECULATIVE_TOKENS:
        output_tokens += 1
    return output_tokens


def counter(engine: VllmServer, name: str) -> int:
    found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", engine.http.get("/metrics").text, re.MULTILINE)
    return round(sum(map(float, found)))


def test_offloaded_blocks(comparisons: dict[str, Comparison]) -> None:
    """Prompts that want more blocks than there are on the gpu, and below it: a hit goes on in the lower tier, until that loses blocks too."""
    random = Random(32)
    comparison, kind = comparisons["O"], "offloaded blocks"
    engine = comparison.engines["O"]
    prompts = [(random_tokens(random, random.randrange(61, 400, 2)), random.choice([None, None, "alice"])) for _ in range(14)]
    assert sum(len(prompt) // BLOCK_SIZE for prompt, _ in prompts) > max(POOL_BLOCKS, OFFLOADED_BLOCKS)
    answers: dict[int, int] = {}
    from_below = 0
    for _ in range(80):
        number = min(random.randrange(14), random.randrange(14))
        prompt, salt = prompts[number]
        length = random.choice([len(prompt), random.randrange(20, len(prompt) + 1)])
        on_gpu = engine.history.held_blocks(prompt[:length], medium="GPU", salt=salt)
        completion = comparison.send(kind, "O", prompt[:length], salt=salt, max_tokens=random.choice([1, 20]))
        if completion.cached_tokens > on_gpu * BLOCK_SIZE:
            from_below += 1
        if length == len(prompt):
            first = answers.setdefault(number, completion.output_ids[0])
            assert completion.output_ids[0] == first, "what came back from the lower tier is what was computed"
    comparison.verify(kind, count_min=30)
    assert from_below >= 10, "the lower tier is read"
    assert comparison.service.stream("O")["blocks"]["cpu"] <= OFFLOADED_BLOCKS


def test_offloaded_blocks_survive_a_reset(comparisons: dict[str, Comparison]) -> None:
    """A reset empties the gpu. What lies below it is still there."""
    random = Random(33)
    comparison, kind = comparisons["O"], "offloaded, after a reset"
    engine = comparison.engines["O"]
    prompts = [random_tokens(random, 110) for _ in range(3)]
    for prompt in prompts:
        comparison.send_only("O", prompt)
    engine.reset_prefix_cache()
    comparison.send_only("O", random_tokens(random, 40))  # the engine announces the reset with its next step
    assert [engine.history.held_blocks(prompt, medium="GPU") for prompt in prompts] == [0, 0, 0]
    for prompt in prompts:
        comparison.send(kind, "O", prompt)
        comparison.send(kind, "O", prompt)
    comparison.verify(kind, count_min=6)


def test_a_whole_prompt_below_the_gpu(comparisons: dict[str, Comparison]) -> None:
    """Where a prompt ends with a block that lies below the gpu, vLLM's connector loads that too, and computes the last token once more."""
    comparison, kind = comparisons["O"], "offloaded, whole prompt"
    for blocks in range(1, 7):
        prompt = random_tokens(Random(34 + blocks), blocks * BLOCK_SIZE)
        comparison.send_only("O", prompt)
        comparison.send(kind, "O", prompt)
        assert comparison.rows[-1].was == blocks * BLOCK_SIZE
    comparison.verify(kind, count_min=6)


def test_nothing_was_refused(comparisons: dict[str, Comparison]) -> None:
    for pod, comparison in comparisons.items():
        stream = comparison.service.stream(pod)
        assert (stream["trust"], stream["refused"], stream["gaps"], stream["undecided"]) == ("live", {}, 0, [])
