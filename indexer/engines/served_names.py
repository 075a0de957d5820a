"""Learns under which names engines serve their models: `GET {http}/v1/models`, as `vllm serve --served-model-name a b` answers it."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self

import msgspec
from msgspec import Struct

from indexer.engines.api import EngineApi
from indexer.engines.client import EngineClient
from indexer.engines.http_client import FetchError
from indexer.engines.networks import EngineNetworks
from indexer.engines.spec import ALIASES_MAX, NAME_LENGTH_MAX
from indexer.engines.spread import spread

log = logging.getLogger(__name__)

PATH = "/v1/models"
BYTES_MAX = 2 * 2**20
TIMEOUT_S = 2.0
# How often it is looked which pods are due, and how soon a pod is asked again. An engine keeps its names for as long as it runs.
LOOK_S = 0.5
AGAIN_S = 30.0
RETRY_S = 2.0
RETRY_MAX_S = 60.0

Pod = tuple[str, str]
"""A model, and a pod of it."""


class _Model(Struct):
    id: str
    root: str | None = None
    parent: str | None = None


class _Models(Struct):
    data: list[_Model]


_decode: Final = msgspec.json.Decoder(_Models).decode


def other_names(model: str, answer: bytes) -> tuple[str, ...]:
    """The other names of a model: those with the same root, which are no adapters. Raises ValueError for another answer."""
    try:
        served = [each for each in _decode(answer).data if not each.parent]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no list of models: {error}") from None
    roots = {each.root for each in served if model in (each.id, each.root)} - {None}
    names = [each.id for each in served if each.root in roots and each.id != model and 0 < len(each.id) <= NAME_LENGTH_MAX]
    return tuple(dict.fromkeys(names))[:ALIASES_MAX]


class _Target(Struct, eq=False):
    """One pod. `task`: the request that is in progress."""

    names: tuple[str, ...] = ()
    task: asyncio.Task[None] | None = None
    failures: int = 0
    not_before_s: float = 0.0


class ServedNames:
    """`async with ServedNames(…) as names:` asks the pods of `targets`, in these networks only. `headers`: of each request."""

    def __init__(
        self, networks: EngineNetworks, targets: Callable[[], Iterable[tuple[Pod, EngineApi]]], headers: Callable[[], Mapping[str, str]]
    ) -> None:
        self._client = EngineClient(networks)
        self._targets = targets
        self._headers = headers
        self._known: dict[Pod, _Target] = {}

    def of(self, model: str, pod: str) -> tuple[str, ...]:
        """The other names that the pod's engine serves the model by, as far as it has answered."""
        target = self._known.get((model, pod))
        return () if target is None else target.names

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        self._asking = asyncio.create_task(self._ask_again(), name="served names")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        tasks = [self._asking, *(target.task for target in self._known.values() if target.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.__aexit__(kind, error, trace)

    async def _ask_again(self) -> None:
        while True:
            try:
                await self._ask_due()
            except Exception:  # an unexpected error must not end the task
                log.exception("asking for names failed")
            await asyncio.sleep(LOOK_S)

    async def _ask_due(self) -> None:
        targets = dict(self._targets())
        for pod in self._known.keys() - targets.keys():
            if (task := self._known.pop(pod).task) is not None:
                task.cancel()
        async for pod, api in spread(list(targets.items()), LOOK_S):
            target = self._known.setdefault(pod, _Target())
            if (target.task is None or target.task.done()) and time.monotonic() >= target.not_before_s:
                target.task = asyncio.create_task(self._ask(pod, target, api), name=f"names of {pod[1]}")

    async def _ask(self, pod: Pod, target: _Target, api: EngineApi) -> None:
        try:
            answer = await self._client.fetch(api, PATH, timeout_s=TIMEOUT_S, bytes_max=BYTES_MAX, error_bytes_max=0, headers=self._headers())
            if answer.status != HTTPStatus.OK or answer.is_cut:
                raise ValueError(f"{answer.url} answered {answer.status}" + (f" with more than {BYTES_MAX} bytes" if answer.is_cut else ""))
            names = other_names(pod[0], answer.body)
        except (FetchError, ValueError) as error:
            log.debug("names of a pod not known", extra={"model": pod[0], "pod": pod[1], "error": str(error)})
            target.not_before_s = time.monotonic() + min(RETRY_MAX_S, RETRY_S * 2**target.failures)
            target.failures = min(target.failures + 1, 10)
        else:
            if names != target.names:
                log.info("names of a pod known", extra={"model": pod[0], "pod": pod[1], "names": ", ".join(names)})
            target.names, target.failures = names, 0
            target.not_before_s = time.monotonic() + AGAIN_S
