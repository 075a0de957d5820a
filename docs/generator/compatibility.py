"""Which engine releases are tested how, from what lies in `tests/`."""

import json
import re
from collections import defaultdict
from pathlib import Path

from docs.generator.markdown import code, table

TESTS = Path(__file__).parents[2] / "tests"
ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
# v028_bs16_main.frames.msgpack is a capture of vLLM 0.28.0.
CAPTURE = re.compile(r"v(\d)(\d\d)_\w+\.frames\.msgpack(?:\.gz)?")
LIVING = re.compile(r"^vllm(?:-cpu)?==([\d.]+)$", re.MULTILINE)

PAYLOADS = "payloads encoded by its own classes"
LIVING_ENGINE = "a living engine, `make test-engine`"


def compatibility_table() -> str:
    """A row for each release that a test knows."""
    rows = sorted(tested().items(), key=lambda item: (item[0][0] != "vllm", [int(part) for part in item[0][1].split(".")]))
    return table(["Engine", "Release", "Tested with"], ([ENGINES[engine], code(release), "; ".join(how)] for (engine, release), how in rows))


def tested() -> dict[tuple[str, str], list[str]]:
    """(Engine, release) → how it is tested."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in (TESTS / "data/wire-golden.jsonl").read_text().splitlines():
        payload = json.loads(line)
        found[payload["engine"], payload["version"]].append(PAYLOADS)
    for release, count in captures().items():
        found["vllm", release].append(f"{count} captures of it, compared with its own `cached_tokens`")
    for release in LIVING.findall((TESTS / "living_engine/requirements.txt").read_text()):
        found["vllm", release].append(LIVING_ENGINE)
    return dict(found)


def captures() -> dict[str, int]:
    """Release of vLLM → how many captures of it are played."""
    found: dict[str, int] = defaultdict(int)
    for path in [*(TESTS / "data").glob("*.frames.msgpack"), *(TESTS / "data/engines").glob("*.frames.msgpack.gz")]:
        matched = CAPTURE.fullmatch(path.name)
        assert matched, f"{path.name} names no release"
        found[f"{matched[1]}.{int(matched[2])}.0"] += 1
    return dict(found)
