"""A real vLLM answers, and the service has said before each request how much of its prompt the engine would take from its cache.

The tests share two engines, in this order: what one leaves in their caches is there for the next, whose prompts are its own. The last engine to be
killed comes back to another service.
"""

import json
from array import array
from random import Random

import pytest

from scorer_api.tokens.local_tokenizer import LocalTokenizer
from scorer_api.tokens.tokenize_input import TokenizeInput
from tests.living_engine.comparison import Comparison, Row, random_text, random_tokens
from tests.living_engine.vllm_server import BLOCK_SIZE, CONTEXT_MAX, MODEL, POOL_BLOCKS
from tests.ports import free_port
from tests.running import Command
from tests.waiting import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_shared_prefixes(comparison: Comparison) -> None:
    """Prompts that share a beginning, of any length, and prompts that come again."""
    random = Random(1)
    prefixes = [random_tokens(random, count) for count in (40, 96, 131)]
    for _ in range(3):
        for prefix in prefixes:
            prompt = [*prefix, *random_tokens(random, random.randrange(1, 60))]
            comparison.send("shared prefix", "A", prompt, max_tokens=5)
            comparison.send("shared prefix", "A", prompt, max_tokens=5)
    comparison.verify("shared prefix", count_min=15)


def test_block_boundaries(comparison: Comparison) -> None:
    """An engine never takes a whole prompt from its cache, and never a part of a block."""
    random = Random(14)
    for count in (15, 16, 17, 31, 32, 33, 63, 64, 65, CONTEXT_MAX - 1):
        prompt = random_tokens(random, count)
        for again in (prompt, prompt, prompt, prompt[:-1], prompt):
            comparison.send("block boundary", "A", again)
    # None of the shortest two; all but the cold one of the others, less the one of 17 tokens without its last.
    comparison.verify("block boundary", count_min=8 * 4 - 1)


def test_decoded_blocks(comparison: Comparison) -> None:
    """Blocks that filled up while decoding count like those of a prompt."""
    prompt = random_tokens(Random(2), 40)
    completion = comparison.send("decoded", "A", prompt, max_tokens=60)
    whole = [*prompt, *completion.output_ids]
    for missing in (0, 1, 3, 4, 5, 20):
        comparison.send("decoded", "A", whole[: len(whole) - missing], max_tokens=2)
    comparison.verify("decoded", count_min=6)


def test_chats(comparison: Comparison) -> None:
    """Three chats side by side under one system prompt, with the tokens that the engine's own /tokenize says."""
    random = Random(3)
    system = {"role": "system", "content": random_text(random, 40)}
    chats = [[system] for _ in range(3)]
    for turn in range(4):
        for chat in chats:
            chat.append({"role": "user", "content": f"{turn}: {random_text(random, 15)}"})
            completion = comparison.chat("chat", "A", chat, max_tokens=24)
            chat.append({"role": "assistant", "content": completion.text})
    comparison.verify("chat", count_min=11)


def test_lora_adapters(comparison: Comparison) -> None:
    """What was computed under one adapter is of no use to another, nor to the base model."""
    prompt = random_tokens(Random(4), 100)
    for lora in (None, "lora1", "lora2", "lora1", None, "lora2"):
        comparison.send("LoRA adapter", "A", prompt, lora=lora, max_tokens=8)
    comparison.send("LoRA adapter", "A", prompt[:70], lora="lora1")
    comparison.verify("LoRA adapter", count_min=4)


def test_cache_salts(comparison: Comparison) -> None:
    """Nor is what was computed under another cache salt."""
    prompt = random_tokens(Random(5), 70)
    for salt in (None, "alice", "bob", "alice", None, "bob"):
        comparison.send("cache salt", "A", prompt, salt=salt)
    comparison.send("cache salt", "A", prompt, salt="alice", lora="lora1")
    comparison.send("cache salt", "A", prompt, salt="alice", lora="lora1")
    comparison.verify("cache salt", count_min=4)


def test_prompts_and_chats_as_text(comparison: Comparison) -> None:
    """The service asks the engines themselves what the tokens are; an adapter's name is the model, as clients of the engine send it."""
    random = Random(15)
    kind = "prompt or chat as text"
    prompts = [f"{random_text(random, 30)} 日本語 🎉 {random_text(random, 10)}" for _ in range(3)]
    chats = [
        [{"role": "system", "content": random_text(random, 30)}, {"role": "user", "content": f"{n}: {random_text(random, 8)}"}] for n in range(3)
    ]
    for _ in range(2):
        for prompt in prompts:
            comparison.ask_as_text(kind, "A", "prompt", prompt)
        for chat in chats:
            comparison.ask_as_text(kind, "A", "messages", chat)
    comparison.send_only("A", random_tokens(random, 20), lora="lora1")
    for _ in range(2):
        comparison.ask_as_text(kind, "A", "prompt", prompts[0], model="lora1")
        comparison.ask_as_text(kind, "A", "messages", chats[0], model="lora1")
    comparison.verify(kind, count_min=8)


def test_our_own_tokenizer_says_what_the_engines_does(comparison: Comparison) -> None:
    """The model's own files, in this process: the tokens of each text are those that the engine used."""
    random = Random(16)
    kind = "our own tokenizer"
    tokenizer = LocalTokenizer(str(comparison.engines["A"].tokenizer), 60)
    texts = [" ", "a", "日本語 🎉 ü", "<s>special</s> <pad>", "\n\n\t x", *(random_text(random, random.randrange(1, 60)) for _ in range(10))]
    try:
        for text in texts:
            completion = comparison.ask_as_text(kind, "A", "prompt", text)
            assert tokens_of(tokenizer, TokenizeInput(MODEL, text)) == completion.prompt_ids, text
        for number in range(10):
            chat = [{"role": role, "content": random.choice(texts)} for role in ("system", "user", "assistant", "user")[: 1 + number % 4]]
            parted = [{**message, "content": [{"type": "text", "text": text} for text in ("one", message["content"])]} for message in chat]
            for messages in (chat, parted):
                content = json.dumps(messages, ensure_ascii=number % 2 == 0).encode()
                completion = comparison.ask_as_text(kind, "A", "messages", messages)
                assert tokens_of(tokenizer, TokenizeInput(MODEL, None, content)) == completion.prompt_ids, messages
    finally:
        tokenizer.close()
    comparison.verify(kind)


def tokens_of(tokenizer: LocalTokenizer, tokenize_input: TokenizeInput) -> list[int]:
    return array("I", tokenizer.tokenize(tokenize_input)).tolist()


def test_evictions(comparison: Comparison) -> None:
    """Twelve prompts that want three times as many blocks as there are: what is left of each changes all the time."""
    random = Random(6)
    prompts = [random_tokens(random, random.randrange(100, 350)) for _ in range(12)]
    assert sum(len(prompt) // BLOCK_SIZE for prompt in prompts) > 2 * POOL_BLOCKS
    removed_before = comparison.engines["A"].history.removed_blocks
    for _ in range(60):
        # Some come often, some seldom.
        prompt = prompts[min(random.randrange(12), random.randrange(12))]
        comparison.send("eviction", "A", prompt[: random.randrange(50, len(prompt) + 1)], max_tokens=random.choice([1, 3, 20]))
    comparison.verify("eviction", count_min=15)
    assert comparison.engines["A"].history.removed_blocks - removed_before > 2 * POOL_BLOCKS


def test_after_concurrent_requests(comparison: Comparison) -> None:
    """Requests that ran at once, evicted each other and stored the same blocks twice leave nothing behind that the service does not know."""
    random = Random(7)
    prompts: list[list[int]] = []
    for round_number in range(4):
        shared = random_tokens(random, 80)
        new = [[*shared, *random_tokens(random, random.randrange(10, 200))] for _ in range(4)]
        comparison.burst("A", [*new, *new], max_tokens=60 * round_number + 1, marker=random_tokens(random, BLOCK_SIZE))
        prompts += new
        for prompt in random.sample(prompts, len(prompts)):
            comparison.send("after concurrent requests", "A", prompt)
    comparison.verify("after concurrent requests", count_min=12)


def test_reset(comparison: Comparison) -> None:
    """A reset is known with the engine's next step, which may be any request."""
    random = Random(8)
    prompt = random_tokens(random, 100)
    for _ in range(2):
        comparison.send("reset", "A", prompt)
    clears_before = comparison.engines["A"].history.clears
    comparison.engines["A"].reset_prefix_cache()
    comparison.send("reset", "A", random_tokens(random, 30))
    for _ in range(2):
        comparison.send("reset", "A", prompt)
    assert comparison.engines["A"].history.clears == clears_before + 1
    comparison.verify("reset", count_min=2)


def test_the_first_request_after_a_reset(comparison: Comparison) -> None:
    """The one thing that no index can know: the engine is empty and has not said so. With this very request it does."""
    kind = "first after a reset"
    prompt = random_tokens(Random(9), 100)
    comparison.send_only("A", prompt)
    comparison.engines["A"].reset_prefix_cache()
    comparison.send(kind, "A", prompt, knowable=False)
    assert comparison.rows[-1] == Row(kind, said=96, was=0, knowable=False)
    comparison.send(kind, "A", prompt)
    comparison.verify(kind)


def test_two_engines(comparison: Comparison) -> None:
    """Each pod's figure is its own engine's, and the pod that holds more is ranked first."""
    random = Random(10)
    kind = "two engines"
    # Too many for one engine to hold them all.
    prefixes = [random_tokens(random, random.randrange(80, 250)) for _ in range(8)]
    for _ in range(40):
        prompt = [*random.choice(prefixes), *random_tokens(random, random.randrange(1, 40))]
        comparison.send(kind, random.choice("AB"), prompt, max_tokens=3)
    for _ in range(15):
        prefix = random_tokens(random, 10 * BLOCK_SIZE)
        for pod, blocks in zip("AB", random.sample(range(10), 2), strict=True):
            comparison.send(kind, pod, prefix[: blocks * BLOCK_SIZE + 1])
        comparison.probe_all(kind, [*prefix, *random_tokens(random, 10)])
    comparison.verify(kind, count_min=35)
    comparison.verify(f"{kind}: ranked first", count_min=15)


def test_a_service_that_starts_late(comparison: Comparison) -> None:
    """From the engines' histories it learns all that the first one saw happen."""
    random = Random(11)
    kind = "service started late"
    prompts = [random_tokens(random, 120) for _ in range(4)]
    for prompt, pod in zip(prompts, "ABAB", strict=True):
        comparison.send_only(pod, prompt)
    engines = list(comparison.engines.values())
    with Command("serve", "--port", "0", *(word for engine in engines for word in ("--engine", engine.spec()))) as service:
        service.wait_url()
        late = Comparison(service, engines, comparison.rows)
        for pod in late.engines:
            late.catch_up(pod)
            assert service.stream(pod)["trust"] == "live"
        for prompt in prompts:
            assert late.scores(prompt)["pods"] == comparison.scores(prompt)["pods"]
            late.probe_all(kind, prompt)
    for pod in comparison.engines:
        comparison.catch_up(pod)
    comparison.verify(kind, count_min=4)
    comparison.verify(f"{kind}: ranked first", count_min=4)


def test_kill_and_restart(comparison: Comparison) -> None:
    """A pod is killed with all that it held. Meanwhile the other one is served; the new life is known for empty before its first request."""
    random = Random(12)
    kind = "kill -9 and restart"
    prompts = [random_tokens(random, 90) for _ in range(4)]
    for prompt in prompts:
        comparison.send(kind, "A", prompt)
    engine = comparison.engines["A"]
    restarts = comparison.service.stream("A")["restarts"]
    engine.kill()
    comparison.service.wait_for(pod="A", connected=False, trust="stale")
    engine.start()
    for prompt in prompts[:2]:
        comparison.send(f"{kind}, the other pod", "B", prompt)
        comparison.send(f"{kind}, the other pod", "B", prompt)
    engine.wait_up()
    comparison.service.wait_for(pod="A", connected=True, sequence=None, restarts=restarts + 1, trust="live")
    for prompt in prompts:
        comparison.probe_all(kind, prompt)
    for prompt in prompts:
        comparison.probe_all(kind, prompt)
    comparison.verify(kind, count_min=8)
    comparison.verify(f"{kind}, the other pod", count_min=2)
    comparison.verify(f"{kind}: ranked first", count_min=2)


def test_an_engine_that_dials_the_service(comparison: Comparison) -> None:
    """Told an address instead of a wildcard, vLLM dials it: the service listens, and takes pod and model from the topic."""
    random = Random(13)
    kind = "engine that dials"
    port, replay_port = free_port(), free_port()
    engine = comparison.engines["B"]
    engine.kill()
    engine.publish_at(f"tcp://127.0.0.1:{port}", topic=f"kv@B@{MODEL}", replay=f"tcp://127.0.0.1:{replay_port}")
    listening = ("--listen", f"tcp://127.0.0.1:{port}", "--listen-replay", f"tcp://{{host}}:{replay_port}")
    with Command("serve", "--port", "0", *listening) as service:
        service.wait_url()
        engine.start().wait_up()
        # A pod is known from its first batch on.
        prompt = random_tokens(random, 80)
        engine.complete(prompt)
        dialled = Comparison(service, [engine], comparison.rows)
        engine.history.wait_for_tokens(prompt)
        dialled.catch_up("B")
        service.wait_for(pod="B", trust="live")
        for _ in range(10):
            dialled.send(kind, "B", [*prompt[: random.randrange(81)], *random_tokens(random, 20)], max_tokens=20)
    dialled.verify(kind, count_min=5)


def test_nothing_was_refused_or_missed(comparison: Comparison) -> None:
    """All that two real engines published was understood, whole and in order."""
    service = comparison.service
    for name in ("kv_indexer_refused_total", "kv_indexer_unknown_total", "kv_indexer_gaps_total", "kv_indexer_losses_total"):
        assert service.metric(name) == 0, name
    wait_until(lambda: service.metric("kv_indexer_orphans_parked") == 0)
