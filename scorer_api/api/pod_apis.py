"""Where the pods of a model have their own APIs."""

import time
from collections.abc import Iterable
from typing import Protocol

from indexer.engines.api import EngineApi

# Each pick asks this, so the answer is kept for a moment.
KEPT_S = 0.5
# Above this number of models what is kept is cleared: models come and go.
MODELS_MAX = 4_096


class Apis(Protocol):
    """Knows the APIs of pods: of one, or of all pods of a model."""

    def api(self, pod: str, model: str) -> EngineApi: ...

    def apis(self, model: str) -> dict[str, EngineApi]: ...


class PodApis:
    """What `apis` says, kept for half a second for each model."""

    def __init__(self, apis: Apis) -> None:
        self._apis = apis
        self._kept: dict[str, tuple[float, dict[str, EngineApi]]] = {}

    def of(self, model: str, pods: Iterable[str]) -> dict[str, EngineApi]:
        """Pod → its API, for these pods of the model, in their order."""
        known = self.of_model(model)
        return {pod: known.get(pod) or self._apis.api(pod, model) for pod in pods}

    def prefill_pods(self, model: str) -> frozenset[str]:
        """Pods of the model that only compute prompts for others."""
        return frozenset(pod for pod, api in self.of_model(model).items() if api.role == "prefill")

    def of_model(self, model: str) -> dict[str, EngineApi]:
        """The same for all pods of the model."""
        now_s = time.monotonic()
        until_s, known = self._kept.get(model, (0.0, {}))
        if now_s >= until_s:
            if len(self._kept) >= MODELS_MAX:
                self._kept.clear()
            known = self._apis.apis(model)
            self._kept[model] = now_s + KEPT_S, known
        return known
