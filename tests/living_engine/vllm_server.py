"""A real vLLM server on the CPU, with a tiny model of its own making, as a process to start, ask and kill.

It runs in an environment of its own (`.venv-engine`, made by `make test-engine`): nothing here imports vLLM.
"""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from msgspec import Struct

from tests.living_engine.history import History
from tests.ports import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv-engine" / "bin" / "python"
MODEL = "tiny"
BLOCK_SIZE = 16
# One of them is never used for content.
POOL_BLOCKS = 64
CONTEXT_MAX = 768
UP_TIMEOUT_S = 600.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
LOOPBACK = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}


class EngineKind(Struct, frozen=True):
    """What distinguishes an engine from others. `model`: the name by which it serves the model in the folder `weights`. `flags`: more of vLLM's.

    `announces_once`: whether all that it announces as stored is one copy of each block that it computes.
    """

    model: str = MODEL
    weights: str = "base"
    pool_blocks: int = POOL_BLOCKS
    has_adapters: bool = False
    announces_once: bool = True
    offloads: bool = False
    flags: tuple[str, ...] = ()


PLAIN = EngineKind(has_adapters=True)
# Both groups take their blocks from one pool.
HYBRID = EngineKind("tiny-hybrid", "hybrid", pool_blocks=112, announces_once=False)
SPECULATIVE_TOKENS = 3
NGRAM = EngineKind(
    "tiny-ngram",
    "repeating",
    flags=(
        "--speculative-config",
        json.dumps({"method": "ngram", "num_speculative_tokens": SPECULATIVE_TOKENS, "prompt_lookup_max": 3, "prompt_lookup_min": 1}),
    ),
)
OFFLOADED_BLOCKS = 160
BLOCK_BYTES = 8 * 1024  # of two layers, in 16-bit floats
OFFLOADING = EngineKind(
    "tiny-offloading",
    announces_once=False,
    offloads=True,
    flags=(
        "--kv-transfer-config",
        json.dumps(
            {
                "kv_connector": "OffloadingConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": {
                    "spec_name": "CopyingSpec",
                    "spec_module_path": "cpu_offloading",
                    "cpu_bytes_to_use": OFFLOADED_BLOCKS * BLOCK_BYTES,
                },
            }
        ),
    ),
)


class Completion(Struct, frozen=True):
    """What came back for one request. `cached_tokens` is the engine's own word for what it took from its cache."""

    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    cached_tokens: int


def make_model(folder: Path) -> Path:
    """Make the models, their tokenizer and the LoRA adapters in this folder, in some seconds. Returns the folder."""
    assert PYTHON.exists(), f"{PYTHON} is missing: `make test-engine` makes it"
    texts = [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "indexer").rglob("*.py"))]
    words = [PYTHON, Path(__file__).parent / "make_model.py", folder, *texts]
    made = subprocess.run(words, env=_environment(folder), capture_output=True, text=True, timeout=UP_TIMEOUT_S, check=False)
    assert made.returncode == 0, made.stderr
    return folder


class VllmServer:
    """One pod. `start`, `wait_up`, `kill`, and again: a new life on the same ports, or where `publish_at` says from then on.

    Events go out over TCP on a wildcard address, since vLLM dials any other, or on an ipc path; all else stays on the loopback interface.
    """

    def __init__(self, pod: str, models: Path, folder: Path, *, over_ipc: bool = False, kind: EngineKind = PLAIN) -> None:
        """`models`: the folder from `make_model`. `folder`: for the log, caches and sockets."""
        self.pod = pod
        self.model = kind.model
        self.kind = kind
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "vllm.log"
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)
        self._models = models
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.topic = ""
        if over_ipc:
            self.events = self._bound_at = f"ipc://{folder}/events"
            self.replay = f"ipc://{folder}/replay"
        else:
            port = free_port()
            self.events, self._bound_at = f"tcp://127.0.0.1:{port}", f"tcp://*:{port}"
            self.replay = f"tcp://127.0.0.1:{free_port()}"
        self.history = History(self.replay, BLOCK_SIZE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self.history.close()
        self.http.close()

    def spec(self) -> str:
        """What to give to --engine."""
        return f"pod={self.pod},model={self.model},events={self.events},replay={self.replay},http=http://127.0.0.1:{self.port}"

    @property
    def tokenizer(self) -> Path:
        """The folder with the files of the model's tokenizer."""
        return self._models / self.kind.weights

    def publish_at(self, endpoint: str, *, topic: str, replay: str) -> None:
        """From the next start on, dial this endpoint instead of binding one."""
        self.events = self._bound_at = endpoint
        self.topic = topic
        self.replay = replay

    def start(self) -> Self:
        """Start the process; `wait_up` waits for it. Several may come up side by side."""
        assert self._process is None, f"{self.pod} runs already"
        self.history.close()
        self.history = History(self.replay, BLOCK_SIZE)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *self._flags()],
                cwd=self._folder,
                env=_environment(self._folder),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def wait_up(self) -> Self:
        """Wait until it answers. Fails with the end of its log when it ends instead."""

        def answers() -> bool:
            assert self._process is not None, f"{self.pod} was not started"
            assert self._process.poll() is None, f"{self.pod} ended:\n{self.log.read_text(errors='replace')[-4000:]}"
            try:
                return self.http.get("/health").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers, UP_TIMEOUT_S, f"{self.pod} up, see {self.log}")
        return self

    def kill(self) -> None:
        """SIGKILL to all of its processes at once, as when a node's memory runs out. Idempotent."""
        if self._process is None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _flags(self) -> list[str]:
        events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": self._bound_at, "replay_endpoint": self.replay, "topic": self.topic}
        base = f"--model {self.tokenizer} --served-model-name {self.model} --host 127.0.0.1 --port {self.port} --seed 0"
        pool = f"--block-size {BLOCK_SIZE} --num-gpu-blocks-override {self.kind.pool_blocks}"
        cache = f"--enforce-eager {pool} --max-model-len {CONTEXT_MAX} --max-num-seqs 4"
        usage = "--enable-prefix-caching --enable-prompt-tokens-details --uvicorn-log-level warning"
        return [*f"{base} {cache} {usage}".split(), *self._adapters(), *self.kind.flags, "--kv-events-config", json.dumps(events)]

    def _adapters(self) -> list[str]:
        if not self.kind.has_adapters:
            return []
        adapters = [f"{path.name}={path}" for path in sorted(self._models.iterdir()) if (path / "adapter_config.json").exists()]
        return [*f"--enable-lora --max-loras {len(adapters)} --max-lora-rank 8".split(), "--lora-modules", *adapters]

    # Requests

    def complete(self, prompt: Sequence[int] | str, *, model: str | None = None, max_tokens: int = 1, **extra: Any) -> Completion:
        """One /v1/completions, greedy, of exactly `max_tokens`."""
        body = {"model": model or self.model, "prompt": prompt if isinstance(prompt, str) else list(prompt), "max_tokens": max_tokens, **extra}
        answer = self._post("/v1/completions", body)
        choice = answer["choices"][0]
        return _completion(answer, choice["prompt_token_ids"], choice["token_ids"], choice["text"])

    def chat(self, messages: Sequence[dict[str, str]], *, model: str = MODEL, max_tokens: int = 1, **extra: Any) -> Completion:
        """One /v1/chat/completions, likewise."""
        answer = self._post("/v1/chat/completions", {"model": model, "messages": list(messages), "max_tokens": max_tokens, **extra})
        choice = answer["choices"][0]
        return _completion(answer, answer["prompt_token_ids"], choice["token_ids"], choice["message"]["content"] or "")

    def tokenize(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a chat's prompt, as a router would ask the engine for them."""
        response = self.http.post("/tokenize", json={"model": MODEL, "messages": list(messages), "add_generation_prompt": True})
        assert response.status_code == 200, response.text
        tokens: list[int] = response.json()["tokens"]
        return tokens

    def reset_prefix_cache(self) -> None:
        """The development endpoint that empties the prefix cache."""
        response = self.http.post("/reset_prefix_cache")
        assert response.status_code == 200, response.text
        assert response.json() == {"success": True}

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self.http.post(path, json={"temperature": 0, "ignore_eos": True, "return_token_ids": True, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


def _completion(answer: dict[str, Any], prompt_ids: list[int], output_ids: list[int], text: str) -> Completion:
    return Completion(prompt_ids, output_ids, text, answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def _environment(folder: Path) -> dict[str, str]:
    """No settings of this process, caches in `folder`, nothing from the network."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR") if key in os.environ}
    return {**kept, "HOME": str(folder), "PYTHONPATH": str(Path(__file__).parent), "VLLM_SERVER_DEV_MODE": "1", **OFFLINE, **SMALL, **LOOPBACK}
