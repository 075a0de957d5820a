"""Whatever the routes of other indexers are asked, in JSON or msgpack, they answer, and nothing goes wrong in the service."""

import logging
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from msgspec import inspect

from indexer.http.negotiation import JSON, MSGPACK
from scorer_api.app import make_serve
from scorer_api.compat import dynamo, mooncake
from tests.engine import Engine
from tests.fuzzing import Ask, Fuzzer, Pairs
from tests.settings import QUICK, settings_of
from tests.test_fuzzing import REQUESTS, SEED, Errors, answer, published

COUNT = REQUESTS // 4
TRACES = [b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"", b"\xff", b"x" * 5_000]
# Of a right request. Whole prompts, parts of them, and endpoints at which nobody listens.
GIVEN: dict[str, list[Any]] = {
    "block_size": [4, 1, 16, 2**31, 10**30],
    "cache_group": [0, None],
    "dp_rank": [0, 1, 63, 64],
    "endpoint": ["tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "tcp://name:1"],
    "hash_profile": [None, {}, {"python_hash_seed": "0"}],
    "instance_id": ["a", "b", "pod", 1, 2],
    "lora_name": ["", "a"],
    "model": ["m", "m", "nobody"],
    "modelname": ["m", "other"],
    "model_name": ["m", "m", "nobody"],
    "replay_endpoint": ["", "tcp://127.0.0.1:3"],
    "routing_group": ["default", "group"],
    "tenant_id": ["default", "tenant", ""],
    "token_ids": [list(range(17)), list(range(8)), []],
    "type": ["vLLM", "SGLang"],
}
REQUESTS_OF: dict[str, dict[str, list[str]]] = {
    "dynamo": {
        path: [field.name for field in inspect.type_info(kind).fields]  # type: ignore[attr-defined]  # a struct's
        for path, kind in {
            "/register": dynamo.RegisterRequest,
            "/unregister": dynamo.UnregisterRequest,
            "/query": dynamo.QueryRequest,
            "/query_by_hash": dynamo.HashQueryRequest,
        }.items()
    }
    | {"/workers": [], "/dump": []},
    "mooncake": {
        "/register": sorted(mooncake.REGISTER_FIELDS),
        "/unregister": sorted(mooncake.UNREGISTER_FIELDS),
        "/query": [field.name for field in inspect.type_info(mooncake.QueryRequest).fields],  # type: ignore[attr-defined]
        "/services": [],
    },
}


class OtherFuzzer(Fuzzer):
    """Asks the routes of one of the other indexers."""

    def __init__(self, seed: int, of: str) -> None:
        super().__init__(seed)
        self._fields = REQUESTS_OF[of]
        self._speaks_msgpack = of == "mooncake"

    def ask(self) -> Ask:
        rng = self.random
        self._odds = rng.choice([0.0, 0.0, 0.02, 0.1, 0.4])
        in_msgpack = self._speaks_msgpack and rng.random() < 0.6
        path = rng.choice(list(self._fields))
        kind = (MSGPACK if in_msgpack else JSON).encode()
        headers = [(b"content-type", kind), (b"accept", kind), (b"traceparent", rng.choice(TRACES)), (b"tracestate", rng.choice(TRACES))]
        if not self._fields[path]:
            return Ask("GET", path.encode(), headers, b"")
        names = [self._maybe(name) for name in self._fields[path] if rng.random() > self._odds / 4]
        value = Pairs((name, self._odd() if rng.random() < self._odds else self._given(name)) for name in names)
        return Ask("POST", path.encode(), headers, self._damaged(self._encoded(value, in_msgpack=in_msgpack)))

    def _given(self, name: Any) -> Any:
        return self.random.choice(GIVEN[name]) if isinstance(name, str) and name in GIVEN else self._tree(2)


@pytest.mark.parametrize("of", REQUESTS_OF)
async def test_nothing_that_is_asked_goes_wrong(of: str) -> None:
    errors, seen, fuzzer = Errors(), Counter[tuple[bytes, int]](), OtherFuzzer(SEED, of)
    logging.getLogger().addHandler(errors)
    try:
        async with AsyncExitStack() as stack:
            engine = stack.enter_context(Engine())
            settings = settings_of({**QUICK, "port": "0", "compat": of, "allowed_engine_networks": "127.0.0.0/8"}, [engine.spec("pod", "m")])
            served = make_serve(settings)
            for part in served.parts:
                await stack.enter_async_context(part)
            published(engine)
            for number in range(COUNT):
                ask = fuzzer.ask()
                try:
                    status, _, body = await answer(served.app, ask)
                    assert status < 500, body
                    assert not errors.records
                except Exception as error:
                    error.add_note(f"request {number} of seed {SEED}: {ask}")
                    raise
                seen[ask.path, status // 100] += 1
    finally:
        logging.getLogger().removeHandler(errors)
    assert {path.encode() for path in REQUESTS_OF[of]} == {path for path, kind in seen if kind == 2}
