"""The names that engines serve their models by: answers of vLLM and SGLang, and what asking over real HTTP makes of them."""

import json
from collections.abc import Mapping

import pytest

from indexer.config.settings import Settings
from indexer.engines.api import EngineApi
from indexer.engines.served_names import ServedNames, other_names
from tests.engine_server import EngineServer
from tests.ports import free_port
from tests.waiting import wait_until_async


def answer(*models: Mapping[str, object]) -> bytes:
    return json.dumps({"object": "list", "data": [{"object": "model", "owned_by": "vllm", **model} for model in models]}).encode()


# vllm serve /models/big --served-model-name org/Big big --lora-modules ad=…
VLLM = answer(
    {"id": "org/Big", "root": "/models/big", "parent": None, "max_model_len": 4096},
    {"id": "big", "root": "/models/big", "parent": None, "max_model_len": 4096},
    {"id": "ad", "root": "/adapters/ad", "parent": "org/Big"},
)


@pytest.mark.parametrize(
    ("model", "content", "names"),
    [
        ("org/Big", VLLM, ("big",)),
        ("big", VLLM, ("org/Big",)),
        ("/models/big", VLLM, ("org/Big", "big")),
        ("other", VLLM, ()),
        ("ad", VLLM, ()),
        ("m", answer({"id": "m", "root": "m"}), ()),
        ("m", answer({"id": "m", "root": "m"}, {"id": "n", "root": "n"}), ()),
        ("m", answer({"id": "m"}, {"id": "n"}), ()),
        ("m", answer({"id": "m", "root": "r"}, {"id": "", "root": "r"}, {"id": "x" * 513, "root": "r"}), ()),
        ("m", answer(), ()),
    ],
)
def test_names_with_the_same_root_are_of_one_model(model: str, content: bytes, names: tuple[str, ...]) -> None:
    assert other_names(model, content) == names


@pytest.mark.parametrize("content", [b"", b"[]", b'{"data": 1}', b'{"data": [{"id": 1}]}', b"\xff", b"[" * 10_000])
def test_other_answers_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no list of models"):
        other_names("m", content)


async def test_pods_are_asked_with_the_key_and_only_where_engines_may_be() -> None:
    with EngineServer(routes={"/v1/models": lambda _: (200, VLLM)}) as api, EngineServer(routes={"/v1/models": lambda _: (401, b"")}) as closed:
        targets = {
            "named": EngineApi("named", api.url, False),
            "limited": EngineApi("limited", api.url, True),
            "closed": EngineApi("closed", closed.url, False),
            "away": EngineApi("away", f"http://127.0.0.1:{free_port()}", False),
        }
        networks = Settings(allowed_engine_networks="10.0.0.0/8").engine_networks
        asked: list[int] = []

        def headers() -> dict[str, str]:
            asked.append(1)
            return {"Authorization": "Bearer key"}

        async with ServedNames(networks, lambda: [(("big", pod), target) for pod, target in targets.items()], headers) as names:
            await wait_until_async(lambda: names.of("big", "named") == ("org/Big",))
            await wait_until_async(lambda: closed.request_counts["/v1/models"] > 0)
            assert [names.of("big", pod) for pod in ("limited", "closed", "away", "unknown")] == [()] * 4
            assert len(asked) >= 4
            del targets["named"]
            await wait_until_async(lambda: names.of("big", "named") == ())
        assert api.request_counts["/v1/models"] == 1
