"""Which model a LoRA adapter is of: clients of OpenAI's API send the adapter's name as the model."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from indexer.http.problems import Problem
from scorer_api.api.schemas import ScoreRequest


class Announced(Protocol):
    """What engines announced."""

    def models_with(self, adapter: str) -> set[str]: ...

    def adapters(self, model: str) -> set[str]: ...


class Adapters:
    """`configured`: adapter → model; it counts more than what engines announce."""

    def __init__(self, configured: Mapping[str, str], announced: Announced) -> None:
        self._configured = configured
        self._announced = announced

    def of(self, model: str) -> list[str]:
        """Names of a model's adapters, configured or announced."""
        configured = {name for name, base in self._configured.items() if base == model}
        return sorted(configured | {name for name in self._announced.adapters(model) if self._configured.get(name, model) == model})

    def resolved(self, request: ScoreRequest) -> ScoreRequest:
        """For a model that there is not: the same with the base model, if it is an adapter's name; else as it is.

        Raises Problem 422 where several models have such an adapter, or the request names another one besides.
        """
        name = request.model
        bases = {self._configured[name]} if name in self._configured else self._announced.models_with(name)
        if not bases:
            return request
        if len(bases) > 1:
            named = " and ".join(map(repr, sorted(bases)))
            raise Problem(422, f"model: {name!r} is a LoRA adapter of {named}; send one of these as model, and {name!r} as lora_name")
        if request.lora_name and request.lora_name != name:
            raise Problem(422, f"lora_name: {request.lora_name!r} is not the adapter that model names, {name!r}; send one of them")
        return msgspec.structs.replace(request, model=bases.pop(), lora_name=name)
