"""Other names of models, and LoRA adapters: clients of OpenAI's API send an alias, or an adapter's name, as the model."""

import time
from collections.abc import Mapping
from typing import Protocol

import msgspec

from indexer.http.problems import Problem
from scorer_api.api.schemas import ScoreRequest

OWN_NAME_S = 0.2


class AnnouncedNames(Protocol):
    """The adapters that engines announced, and the other names that they serve their models by."""

    def models_named(self, alias: str) -> set[str]: ...

    def models_with(self, adapter: str) -> set[str]: ...

    def adapters(self, model: str) -> set[str]: ...


class Adapters:
    """`configured`: adapter → base model. It takes precedence over `announced`."""

    def __init__(self, configured: Mapping[str, str], announced: AnnouncedNames) -> None:
        self._configured = configured
        self._announced = announced
        self._own_names: dict[str, tuple[bool, float]] = {}
        """Model → whether an adapter has its name, and until when that counts."""

    def of_model(self, model: str) -> list[str]:
        """Names of the model's adapters, sorted."""
        configured = {name for name, base in self._configured.items() if base == model}
        return sorted(configured | {name for name in self._announced.adapters(model) if self._configured.get(name, model) == model})

    def with_adapter(self, request: ScoreRequest) -> ScoreRequest:
        """The request for the adapter that has its model's own name, if there is one, else the request itself: engines look for an adapter first."""
        if request.lora_name is not None or not self._has_own_name(request.model):
            return request
        return msgspec.structs.replace(request, lora_name=request.model)

    def _has_own_name(self, model: str) -> bool:
        """Whether an adapter of the model has the model's name. Each request asks this, so the answer is kept for a moment."""
        now_s = time.monotonic()
        has_it, until_s = self._own_names.get(model, (False, 0.0))
        if now_s >= until_s:
            has_it = self._configured.get(model) == model or model in self._announced.adapters(model)
            self._own_names[model] = has_it, now_s + OWN_NAME_S
        return has_it

    def with_known_model(self, request: ScoreRequest) -> ScoreRequest:
        """The request with the model that its model is an alias of, or as `with_base_model` returns it. For requests of an unknown model.

        Raises Problem 422 if several models have such an alias or adapter, or if the request names another adapter too.
        """
        if request.model in self._configured:
            return self.with_base_model(request)
        models = self._announced.models_named(request.model)
        if not models:
            return self.with_base_model(request)
        if len(models) > 1:
            names = " and ".join(map(repr, sorted(models)))
            raise Problem(422, f"model: {request.model!r} is an alias of {names}; send one of these")
        return msgspec.structs.replace(request, model=models.pop())

    def with_base_model(self, request: ScoreRequest) -> ScoreRequest:
        """The request with model and lora_name set if its model is an adapter's name, else the request itself. For requests of an unknown model.

        Raises Problem 422 if several models have such an adapter, or if the request names another adapter too.
        """
        name = request.model
        bases = {self._configured[name]} if name in self._configured else self._announced.models_with(name)
        if not bases:
            return request
        if len(bases) > 1:
            models = " and ".join(map(repr, sorted(bases)))
            raise Problem(422, f"model: {name!r} is a LoRA adapter of {models}; send one of these as model, and {name!r} as lora_name")
        if request.lora_name and request.lora_name != name:
            raise Problem(422, f"lora_name: {request.lora_name!r} is not the adapter that model names, {name!r}; send one of them")
        return msgspec.structs.replace(request, model=bases.pop(), lora_name=name)
