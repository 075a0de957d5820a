"""What a decoded request asks of the view, wherever its tokens come from. Scores, batches and explanations all ask in this way."""

from msgspec import Struct

from indexer.http.problems import Problem
from scorer_api.engine_hashes import EngineHashes, normalised
from scorer_api.schemas import SOURCES, ScoreRequest
from scorer_api.score_request import prompt_of
from scorer_api.view import Prompt, View


class Asked(Struct, frozen=True):
    """A request, and what is looked for. `source`: the field that its tokens came from, one of SOURCES."""

    request: ScoreRequest
    source: str
    prompt: Prompt | EngineHashes


class Asking:
    """Holds what it takes to find out what a request asks for."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def ask(self, request: ScoreRequest) -> Asked:
        """Raises Problem where it asks for nothing that there could be."""
        source = source_of(request)
        if source == "block_hashes":
            return Asked(request, source, self._hashes_of(request))
        return Asked(request, source, prompt_of(request))

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
    given = [name for name in SOURCES if getattr(request, name) is not None]
    if len(given) == 1:
        return given[0]
    allowed = SOURCES[0] if len(SOURCES) == 1 else f"exactly one of {', '.join(SOURCES)}"
    raise Problem(422, f"the prompt should be given as {allowed}, not as {' and '.join(given) or 'none of them'}")
