"""Hints at common mistakes in how engines, routers and this service are set up. Pure."""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum

from msgspec import Struct

from scorer_api.explain.reasons import PromptFacts, StreamFacts
from scorer_api.index.traces import PodTrace, RankTrace

# A prompt whose highest token exceeds the highest announced one by more than this factor was made with another vocabulary.
FOREIGN_TIMES = 2
# This number of prompts in a row without any match is no coincidence. While there were fewer, all of them have to be without.
UNMATCHED_MIN = 64
# Gaps at which all batches came by replay: one may be a lost last batch, more are no coincidence.
ONLY_REPLAYS_GAPS_MIN = 2
NAMES_MAX = 3


class HintCode(StrEnum):
    """What may be wrong with how things are set up."""

    NOBODY_FOLLOWS = "nobody_follows"
    NOT_CONNECTED = "not_connected"
    NO_EVENTS = "no_events"
    ONLY_REPLAYS = "only_replays"
    REPLAY_UNANSWERED = "replay_unanswered"
    EVENTS_REFUSED = "events_refused"
    HASH_SEED_DIFFERS = "hash_seed_differs"
    PROMPT_TOO_SHORT = "prompt_too_short"
    BLOCK_SIZES_DIFFER = "block_sizes_differ"
    LORA_UNKNOWN = "lora_unknown"
    FOREIGN_TOKENS = "foreign_tokens"
    NOTHING_MATCHES = "nothing_matches"


class Hint(Struct, frozen=True):
    """What to look at, and how to mend it."""

    code: HintCode
    detail: str


def hints(pods: Sequence[PodTrace], streams: Sequence[StreamFacts], prompt: PromptFacts) -> list[Hint]:
    """What may be wrong, the most basic first. `pods`: all of the model."""
    found = [Hint(code, detail.format(who=_names(who))) for code, is_so, detail in OF_STREAMS if (who := [s.pod for s in streams if is_so(s)])]
    ranks = [trace for pod in pods for trace in pod.ranks]
    if who := [pod.pod for pod in pods if any(trace.has_other_seed for trace in pod.ranks)]:
        found.append(Hint(HintCode.HASH_SEED_DIFFERS, SEED.format(who=_names(who))))
    return found + _of_prompt(ranks, streams, prompt)


def _of_prompt(ranks: Sequence[RankTrace], streams: Sequence[StreamFacts], prompt: PromptFacts) -> list[Hint]:
    found = []
    sizes = {trace.block_size for trace in ranks if trace.block_size is not None}
    if sizes and not any(trace.usable_blocks for trace in ranks):
        least = min(sizes) + 1
        found.append(
            Hint(
                HintCode.PROMPT_TOO_SHORT,
                f"the prompt has {prompt.tokens} tokens and the smallest block {least - 1}: nothing can match below {least} tokens",
            )
        )
    if len(sizes) > 1:
        found.append(Hint(HintCode.BLOCK_SIZES_DIFFER, BLOCK_SIZES.format(sizes=", ".join(map(str, sorted(sizes))))))
    if prompt.has_unknown_lora:
        found.append(Hint(HintCode.LORA_UNKNOWN, f"no engine has announced the adapter {prompt.lora_name!r} yet: {LORA}"))
    can_match = any(trace.usable_blocks for trace in ranks)
    if not can_match or any(trace.matched_blocks for trace in ranks) or not any(sum(stream.blocks.values()) for stream in streams):
        return found
    highest = max((stream.highest_token for stream in streams if stream.highest_token is not None), default=None)
    if highest is not None and prompt.highest_token is not None and prompt.highest_token > FOREIGN_TIMES * highest:
        found.append(Hint(HintCode.FOREIGN_TOKENS, FOREIGN.format(given=prompt.highest_token, highest=highest)))
    if prompt.unmatched >= min(prompt.asked, UNMATCHED_MIN):
        before = f"none of the last {prompt.unmatched} prompts did" if prompt.unmatched else "no other prompt has been asked for yet"
        found.append(Hint(HintCode.NOTHING_MATCHES, NOTHING[prompt.source == "block_hashes"].format(before=before)))
    return found


def _names(pods: Iterable[str]) -> str:
    """A few names, and how many more there are."""
    names = list(dict.fromkeys(pods))
    more = len(names) - NAMES_MAX
    return ", ".join(names[:NAMES_MAX]) + (f" and {more} more" if more > 0 else "")


SEED = (
    "{who}: the indexer that follows it has another --hash-seed than this scorer, so no block can ever match; give all replicas the same --hash-seed"
)
BLOCK_SIZES = "pods of this model have blocks of {sizes} tokens: each is matched by its own; a router that hashes blocks needs each pod's size"
LORA = "check the name against the engine's --lora-modules; an adapter is known once a prompt with it has been cached"
FOREIGN = (
    "the prompt's highest token is {given}, the highest that engines announced about {highest}: the ids look like those of another vocabulary; "
    "tokenise with the tokenizer of this very model"
)
NOTHING = (
    "pods hold blocks of this model, but none holds the first block of this prompt, and {before}: unless the prompt is new, its tokens differ from "
    "the engine's from the start; compare them with the engine's /tokenize (tokenizer, chat template, begin-of-text token), and lora_name and "
    "cache_salt with the request's",
    "pods hold blocks of this model, but none knows the first of these hashes, and {before}: engine hashes are meaningful inside one engine process "
    "only; compare hash algorithm, PYTHONHASHSEED and block size of router and engines, or ask with token_ids",
)
OF_STREAMS: tuple[tuple[HintCode, Callable[[StreamFacts], bool], str], ...] = (
    (
        HintCode.NOBODY_FOLLOWS,
        lambda stream: not stream.is_followed,
        "{who}: no indexer follows it at present; check that kv-indexer ingest runs with the same --redis and --namespace, and that it has this pod",
    ),
    (
        HintCode.NOT_CONNECTED,
        lambda stream: stream.is_followed and not stream.connected,
        "{who}: not connected to its events endpoint; check host and port, that the engine runs, and that its --kv-events-config has "
        "enable_kv_cache_events true and publisher zmq: without that nobody listens there",
    ),
    (
        HintCode.NO_EVENTS,
        lambda stream: stream.connected and not stream.batches,
        "{who}: connected, but no batch of events has ever come; unless it has served no prompt yet, events are disabled (enable_kv_cache_events, "
        "prefix caching), topic is not a beginning of the engine's, or the port belongs to something else",
    ),
    (
        HintCode.ONLY_REPLAYS,
        lambda stream: stream.connected and stream.gaps >= ONLY_REPLAYS_GAPS_MIN and stream.batches == stream.replayed,
        "{who}: batches come by replay only, none over the events endpoint; check topic, which should be a beginning of the engine's or left out, "
        "and that events is the port of endpoint and not of another publisher",
    ),
    (
        HintCode.REPLAY_UNANSWERED,
        lambda stream: (stream.last_error or "").startswith("replay endpoint"),
        "{who}: the replay endpoint does not answer; check that replay is the port of replay_endpoint in --kv-events-config, not that of the events, "
        "or leave it out if the engine has none",
    ),
    (
        HintCode.EVENTS_REFUSED,
        lambda stream: (stream.last_error or "").startswith("refused:"),
        "{who}: some of its events could not be used; last_error in /v1/pods and kv_indexer_refused_total say why",
    ),
)
