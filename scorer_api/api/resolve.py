"""What a decoded request asks of the view, wherever its tokens come from. Scores, batches and explanations all ask in this way."""

from msgspec import UNSET, Struct

from indexer.http.problems import Problem
from scorer_api.api.adapters import Adapters
from scorer_api.api.decode import prompt_of, wording_of
from scorer_api.api.schemas import SOURCES, ScoreRequest
from scorer_api.index.engine_hashes import EngineHashes, normalised
from scorer_api.index.view import Prompt, View
from scorer_api.tokens.texts import Texts


class Asked(Struct, frozen=True):
    """A request, and what is looked for. `source`: the field that its tokens came from, one of SOURCES."""

    request: ScoreRequest
    source: str
    prompt: Prompt | EngineHashes


class Asking:
    """Holds what it takes to find out what a request asks for."""

    def __init__(self, view: View, texts: Texts, adapters: Adapters) -> None:
        self._view = view
        self._texts = texts
        self._adapters = adapters

    async def ask(self, request: ScoreRequest) -> Asked:
        """Raises Problem where it asks for nothing that there could be."""
        source = source_of(request)
        # What is looked for is the base model's; the answer says what was asked.
        meant = request if self._view.has_model(request.model) else self._adapters.resolved(request)
        if source == "block_hashes":
            return Asked(request, source, self._hashes_of(meant))
        wording = wording_of(meant)
        if source == "token_ids":
            return Asked(request, source, prompt_of(meant))
        if not self._view.has_model(meant.model):
            raise unknown_model(meant.model)
        return Asked(request, source, prompt_of(meant, await self._texts.tokens(meant.model, wording)))

    def _hashes_of(self, request: ScoreRequest) -> EngineHashes:
        try:
            hashes = EngineHashes(request.model, normalised(request.block_hashes or ()))
        except ValueError as error:
            raise Problem(422, str(error)) from None
        try:
            why_not = self._view.why_no_hashes(request.model)
        except KeyError:
            return hashes  # that there is no such model is said by whoever looks
        if why_not is not None:
            raise Problem(501, f"block_hashes: {why_not}; or ask with token_ids")
        return hashes


def source_of(request: ScoreRequest) -> str:
    """The one source of tokens that a request has. Raises Problem 422 where it has none or several."""
    given = [name for name in SOURCES if getattr(request, name) not in (None, UNSET)]
    if len(given) == 1:
        return given[0]
    allowed = SOURCES[0] if len(SOURCES) == 1 else f"exactly one of {', '.join(SOURCES)}"
    raise Problem(422, f"the prompt should be given as {allowed}, not as {' and '.join(given) or 'none of them'}")


def unknown_model(model: str) -> Problem:
    """There is no such model."""
    return Problem(404, f"model: {model!r} is not known; it is once a pod of it is registered, see /v1/models")
