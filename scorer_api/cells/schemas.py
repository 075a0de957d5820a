"""The types of answers that are merged of those of cells."""

from typing import Annotated

from msgspec import Meta, Struct

from scorer_api.api.route_schemas import RouteAnswer
from scorer_api.api.schemas import ScoreAnswer
from scorer_api.cells.cell import State


class CellAnswer(Struct, frozen=True):
    """What became of a cell's part. `age_s`: how old what it answered from is."""

    cell: Annotated[str, Meta(description="Its URL.")]
    state: Annotated[State, Meta(description="Whether its pods are in the answer: they are if it answered.")]
    age_s: float | None = None


class CellsScoreAnswer(ScoreAnswer, frozen=True, kw_only=True):
    """Every pod that the cells know of the model, best first; with each cell's part."""

    cells: list[CellAnswer]


class CellsRouteAnswer(RouteAnswer, frozen=True, kw_only=True):
    """The pod to send the prompt to, of those of all cells; with each cell's part."""

    cells: list[CellAnswer]
