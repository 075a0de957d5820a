"""Which model an engine serves: the first of `GET /v1/models` that is no adapter. Each engine is asked by a task of its own."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct

from indexer.engines.api import EngineApi
from indexer.engines.client import EngineClient
from indexer.engines.http_client import FetchError
from indexer.engines.networks import EngineNetworks
from indexer.engines.spec import NAME_LENGTH_MAX, http_base_of

log = logging.getLogger(__name__)

PATH = "/v1/models"
BYTES_MAX = 2 * 2**20
TIMEOUT_S = 2.0
# An engine that is ready answers, one that starts loads its model for minutes.
READY_PAUSE_S = (0.25, 5.0)
STARTING_PAUSE_S = (2.0, 5.0)


class _Model(Struct):
    id: str
    parent: str | None = None


class _Models(Struct):
    data: list[_Model]


_decode = msgspec.json.Decoder(_Models).decode


def model_of(answer: bytes) -> str:
    """The first model that is no adapter. Raises ValueError for an answer without one."""
    try:
        served = [each.id for each in _decode(answer).data if not each.parent]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"it answers no list of models: {error}") from None
    if not served or not 0 < len(served[0]) <= NAME_LENGTH_MAX:
        raise ValueError("its list of models names none")
    return served[0]


class _Asked(Struct, eq=False):
    task: asyncio.Task[None]
    is_ready: asyncio.Event
    failure: str | None = None


class ModelNames:
    """`async with ModelNames(…) as names:` asks engines, in these networks only. `headers`: of each request. `note`: gets pod and model."""

    def __init__(self, networks: EngineNetworks, headers: Callable[[], Mapping[str, str]], note: Callable[[str, str], None]) -> None:
        # Those that start are asked through connections of their own: they may take the time that a request has.
        self._clients = {is_ready: EngineClient(networks) for is_ready in (True, False)}
        self._headers = headers
        self._note = note
        self._asked: dict[str, _Asked] = {}

    async def __aenter__(self) -> Self:
        for client in self._clients.values():
            await client.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        tasks = [asked.task for asked in self._asked.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._clients.values():
            await client.__aexit__(None, None, None)

    def ask(self, pod: str, *, is_ready: bool) -> None:
        """Ask until it answers. A pod that is ready now is asked at once, also where it is asked already."""
        asked = self._asked.get(pod)
        if asked is None:
            event = asyncio.Event()
            asked = self._asked[pod] = _Asked(asyncio.create_task(self._ask(pod, event), name=f"model of {pod}"), event)
        if is_ready:
            asked.is_ready.set()
        else:
            asked.is_ready.clear()

    def forget(self, pod: str) -> None:
        """Ask it no more. Idempotent."""
        if (asked := self._asked.pop(pod, None)) is not None:
            asked.task.cancel()

    def failure(self, pod: str) -> str | None:
        """Why the pod's model is not known, where it was asked in vain."""
        asked = self._asked.get(pod)
        return None if asked is None else asked.failure

    async def _ask(self, pod: str, is_ready: asyncio.Event) -> None:
        tries, was_ready = 0, False
        while True:
            if is_ready.is_set() and not was_ready:
                tries = 0
            was_ready = is_ready.is_set()
            try:
                model = await self._answer(pod, is_ready=was_ready)
            except (FetchError, ValueError) as error:
                self._asked[pod].failure = str(error)
                log.debug("model of a pod not known", extra={"pod": pod, "error": str(error)})
            except Exception:  # an error of ours must not leave the pod without a model for good
                log.exception("asking for a model failed")
            else:
                self._note(pod, model)
                return
            shortest_s, longest_s = READY_PAUSE_S if was_ready else STARTING_PAUSE_S
            pause_s = random.uniform(0.75, 1.0) * min(longest_s, shortest_s * 2**tries)
            tries = min(tries + 1, 10)
            if was_ready:
                await asyncio.sleep(pause_s)
            else:
                try:
                    async with asyncio.timeout(pause_s):
                        await is_ready.wait()
                except TimeoutError:
                    pass

    async def _answer(self, pod: str, *, is_ready: bool) -> str:
        """Raises FetchError, ValueError."""
        api = EngineApi(pod, http_base_of(pod), is_limited=True)
        answer = await self._clients[is_ready].fetch(api, PATH, timeout_s=TIMEOUT_S, bytes_max=BYTES_MAX, error_bytes_max=0, headers=self._headers())
        if answer.status != HTTPStatus.OK or answer.is_cut:
            raise ValueError(f"{answer.url} answered {answer.status}" + (f" with more than {BYTES_MAX} bytes" if answer.is_cut else ""))
        return model_of(answer.body)
