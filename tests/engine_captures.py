"""Captures of more kinds of engines (data/engines/README.md), played by engines with real sockets.

A capture is played in several variants at once: each is a pod of the same model, and one answer compares all of them with the engine's own word.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.engine import Engine
from tests.ports import free_port, is_free

DATA = Path(__file__).parent / "data" / "engines"

Request = dict[str, Any]
Wrong = tuple[str, str, int, int]
"""Variant, kind of the row, what the service said, what the engine said."""


class Capture(NamedTuple):
    """`rows`: how many requests the engine answered with nothing else in flight. `unknowable`: kind → how many of them no index can know."""

    name: str
    rows: int
    unknowable: dict[str, int]
    offload_block_size: int | None = None
    drops_last_block: int | None = None

    @property
    def frames(self) -> list[tuple[float, str, list[bytes]]]:
        """When they came, from which engine, and the frames: topic, number, payload."""
        frames: list[tuple[float, str, list[bytes]]] = msgspec.msgpack.decode(gzip.decompress((DATA / f"{self.name}.frames.msgpack.gz").read_bytes()))
        return frames

    @property
    def requests(self) -> list[Request]:
        """Those that were alone, with the number of frames before each."""
        requests: list[Request] = json.loads(gzip.decompress((DATA / f"{self.name}.requests.json.gz").read_bytes()))
        return [request for request in requests if request.get("sequential") and "cached_tokens" in request]


# What no index can know:
# such a request reads nothing from the cache, or reports the hit of one of its children only;
PROMPT_LOGPROBS = {"x_prompt_logprobs": 1, "x_echo_lp": 1, "x_n3": 1}
# the blocks that a sparse event of a model with window groups only names are not in the event, so the index promises less than there is;
SPARSE_WINDOWS = {
    **{"f0_full_of0": 2, "f0_full_of1": 1, "f0_full_of2": 1, "f0_cut11_of0": 1},
    **{"f1_full_of0": 2, "f1_full_of1": 1, "f1_full_of2": 1, "f1_cut11_of0": 1},
    **{"repeat": 1, "boundary_128": 2, "boundary_64": 1, "final": 1, "dup": 2, "dup_probe": 6, "chat_turn4": 1, "chat_turn5": 1},
    **{"long_repeat": 1, "long_diverge_at_15": 1, "long_trunc_13": 1, "long_trunc_6": 1, "long_diverge_midblock": 1, "long_repeat2": 1},
    **{f"evict_revisit_{number}": 1 for number in (0, 2, 6, 7, 9, 10, 11)},
    **{"press_long_again": 3, "press_revisit": 3},
}
# a partial tail is reused, which has no key of a whole block;
PARTIAL_TAIL = {"first_short_again": 1}
# the chunk size of chunked local attention;
CHUNK = {"f_sys_short": 1}
# a chunk of two blocks of which the engine dropped one without a word;
DROPPED_HALF = {"o_flood_revisit": 1}
# the cpu tier was emptied without an event;
SILENT_RESET = {"g_again": 6}
# the other pod's blocks lie in the file system that both read;
SHARED_FILES = {"t_B_first": 4, "t_B_salted_alice": 1, "t_B_12_alice": 1, "t_B_revisit": 6, "t_B_salted_alice3": 1}
SHARED_FILES_2 = {"t2_B_first": 6}
# an idle engine holds its reset back until its next step.
HELD_BACK = {"s_first_after_pause": 1, "s_first_after_sleep_level=1": 1, "s_first_after_reset_prefix_cache_reset_running_requests=true": 1}
HELD_BACK_BY_RANK = {"dp_after_reset": 1}

CAPTURES = [
    # Full and sliding-window groups.
    Capture("v028_gemma2_bs16", 121, PROMPT_LOGPROBS),
    Capture("v028_gemma2_frontier_bs16", 88, {}),
    Capture("v032_gemma2_bs32", 209, PROMPT_LOGPROBS),
    Capture("v032_gemma2_lora_bs32", 44, {}),
    Capture("v032_gemma3_chunk64_bs32", 172, {}),
    Capture("v032_multifa_bs32", 153, {}),
    # Window groups only.
    Capture("v028_mistralsw_bs16", 121, PROMPT_LOGPROBS),
    Capture("v032_mistralsw_bs32", 149, SPARSE_WINDOWS),
    # Recurrent states, partial tails first, chunked local attention.
    Capture("v028_lfm2_align", 96, {}),
    Capture("v032_lfm2_unit_short", 18, PARTIAL_TAIL),
    Capture("v032_llama4_bs32", 141, CHUNK),
    # Speculative decoding.
    Capture("v028_eagle_bs16", 122, {}, drops_last_block=1),
    # Images and offloading.
    Capture("v032_llava_bs32", 54, {}),
    Capture("v032_offsd_llava_bs32", 54, {}),
    Capture("v032_off_bs32", 127, {}),
    Capture("v032_off_chunk64_bs32", 127, DROPPED_HALF, offload_block_size=64),
    Capture("v032_offsd_bs32", 127, {}),
    Capture("v032_offgemma_bs32", 127, {}),
    Capture("v032_simplereset_bs32", 107, {}),
    Capture("v032_offghost_bs32", 73, SILENT_RESET),
    Capture("v032_tier_fs_bs32", 71, SHARED_FILES),
    Capture("v032_tier2_fs_bs32", 48, SHARED_FILES_2),
    # Data-parallel ranks, and calls for development.
    Capture("v032_dp2_bs32", 56, HELD_BACK_BY_RANK),
    Capture("v032_devcalls_bs32", 38, HELD_BACK),
]


class Variant:
    """One way to hear a capture's engines. `lost_every`: so often a frame never reaches a subscriber. `from_frame`: they are registered when so
    many frames were sent."""

    def __init__(self, name: str, capture: Capture, engines: Iterable[str], *, lost_every: int | None = None, from_frame: int = 0) -> None:
        self.name = name
        self.lost_every = lost_every
        self.from_frame = from_frame
        self._settings = {"offload_block_size": capture.offload_block_size, "drops_last_block": capture.drops_last_block}
        self._pods: dict[str, list[Engine]] = {}
        for engine in engines:
            self._pods.setdefault(engine.partition("#")[0], []).append(Engine())
        for ranks in self._pods.values():
            _start_in_a_row(ranks)

    def pod(self, engine: str) -> str:
        return f"{self.name}-{engine.partition('#')[0]}"

    def engine(self, name: str) -> Engine:
        pod, _, rank = name.partition("#")
        return self._pods[pod][int(rank or 0)]

    def specs(self, model: str) -> dict[str, dict[str, Any]]:
        """Pod → what to register it with."""
        specs: dict[str, dict[str, Any]] = {}
        for pod, ranks in self._pods.items():
            spec = {"model": model, "events": f"tcp://127.0.0.1:{ranks[0].events_port}", "replay": f"tcp://127.0.0.1:{ranks[0].replay_port}"}
            more = {"ranks": len(ranks) if len(ranks) > 1 else None, **self._settings}
            specs[self.pod(pod)] = spec | {key: value for key, value in more.items() if value is not None}
        return specs

    def publish(self, name: str, number: int, payload: bytes) -> None:
        engine = self.engine(name)
        is_lost = self.lost_every is not None and number % self.lost_every == self.lost_every - 1
        assert engine.publish_payload(payload, is_lost=is_lost) == number

    def is_heard(self, streams: dict[tuple[str, int], Request]) -> bool:
        """Whether a service has applied all that was sent. `streams`: (pod, rank) → their status."""
        for pod, ranks in self._pods.items():
            for rank, engine in enumerate(ranks):
                stream = streams.get((self.pod(pod), rank))
                if (
                    stream is None
                    or stream["trust"] not in ("live", "partial")
                    or stream["sequence"] != (engine.next_number - 1 if engine.next_number else None)
                ):
                    return False
        return True

    def close(self) -> None:
        for engine in chain.from_iterable(self._pods.values()):
            engine.kill()


def _start_in_a_row(ranks: list[Engine]) -> None:
    """Start the engines of one pod: the ports of rank r are those of rank 0 plus r."""
    if len(ranks) > 1:
        while not all(map(is_free, range(first := free_port(), first + 2 * len(ranks)))):
            pass
        for rank, engine in enumerate(ranks):
            engine.events_port, engine.replay_port = first + rank, first + len(ranks) + rank
    for engine in ranks:
        engine.start()


class Played:
    """What came of a capture: how many rows were compared in each variant, and those that a service answered otherwise than the engine did."""

    def __init__(self) -> None:
        self.compared: Counter[str] = Counter()
        self.wrong: list[Wrong] = []

    def add(self, variant: str, request: Request, matched: int) -> None:
        self.compared[variant] += 1
        if matched != request["cached_tokens"]:
            self.wrong.append((variant, request["kind"], matched, request["cached_tokens"]))

    def wrong_kinds(self, variant: str) -> dict[str, int]:
        """Kind → how many rows of it were wrong."""
        return dict(Counter(kind for name, kind, _, _ in self.wrong if name == variant))


def question(request: Request, model: str) -> Request:
    """What a router would ask for a captured request: its tokens, and all that keeps its blocks apart from others'."""
    is_lora = request["model"] != "tiny"
    asked = {"model": model, "token_ids": request["prompt_ids"], "lora_name": request["model"] if is_lora else None}
    more = {"cache_salt": request["extra"].get("cache_salt"), "block_extra_keys": request["block_extra_keys"] or None}
    return asked | {key: value for key, value in more.items() if value is not None}


def matched_tokens(answer: Request, pod: str, engine: str) -> int:
    """Those of one engine, which may be a rank of its pod."""
    (found,) = (item for item in answer["pods"] if item["pod"] == pod)
    _, _, rank = engine.partition("#")
    return int(found["ranks"][rank or "0"] * (found["block_size"] or 0))
