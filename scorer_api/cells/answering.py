"""Answers requests for scores and picks by what the cells answer."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import TypeVar

import msgspec
from msgspec import Raw, Struct, structs

from indexer.config.settings import Settings
from indexer.http.negotiation import JSON, MSGPACK, encode
from indexer.http.problems import Problem, ProblemDetails
from scorer_api.api.resolve import unknown_model
from scorer_api.api.route_schemas import CandidatesAnswer, DoneAnswer, DoneRequest, RouteAnswer
from scorer_api.api.schemas import ModelAnswer, ModelsAnswer, ScoreAnswer, ViewAnswer
from scorer_api.cells.cell import Cell, Part
from scorer_api.cells.fan_out import FanOut, Parts
from scorer_api.cells.merging import Candidates, MergedPick, merge_scores, unknown_pods
from scorer_api.cells.metrics import CellMetrics
from scorer_api.cells.schemas import CellAnswer, CellsRouteAnswer, CellsScoreAnswer
from scorer_api.routing.policies import PolicyInput, PolicyName, policy_for
from scorer_api.routing.router import MODELS_MAX, TURN_MAX

T = TypeVar("T")

RETRY_AFTER_S = 1
# To decode so much takes about half a millisecond.
LARGE_BYTES = 65_536
# To merge so many takes about as long.
LARGE_PODS = 500
# A cell that says so often of a pod that it cannot be picked any more has none for this request.
GONE_PODS_MAX = 3

_decode_score = msgspec.msgpack.Decoder(ScoreAnswer).decode
_decode_candidates = msgspec.msgpack.Decoder(CandidatesAnswer).decode
_decode_route = msgspec.msgpack.Decoder(RouteAnswer).decode
_decode_done = msgspec.msgpack.Decoder(DoneAnswer).decode
_decode_models = msgspec.json.Decoder(ModelsAnswer).decode
_decode_problem = msgspec.json.Decoder(ProblemDetails).decode


class _Head(Struct, frozen=True):
    """What the front has to know of a request that cells take for right; all else is theirs."""

    model: str
    limit: int | None = None
    policy: PolicyName | None = None
    session_id: str | None = None


_HEADS = {JSON: msgspec.json.Decoder(_Head).decode, MSGPACK: msgspec.msgpack.Decoder(_Head).decode}
_FIELDS = {JSON: msgspec.json.Decoder(dict[str, Raw]).decode, MSGPACK: msgspec.msgpack.Decoder(dict[str, Raw]).decode}


class Answering:
    """Each method takes a request's body and the headers to pass on, and raises Problem."""

    def __init__(self, settings: Settings, cells: FanOut, metrics: CellMetrics) -> None:
        self._settings = settings
        self._cells = cells
        self._metrics = metrics
        self._random = Random(settings.limits.routing.route_seed)
        self._turns: dict[str, int] = {}

    async def score(self, body: bytes, media_type: str, accepted: str, headers: Mapping[str, str]) -> bytes:
        """The pods of all cells, best first."""
        parts, answers, head = await self._ask("score", "/v1/score", body, media_type, headers, _decode_score)
        merged = merge_scores(list(answers.values()), head.limit)
        cells = _cells_of(parts, {cell: answer.view for cell, answer in answers.items()})
        return encode(CellsScoreAnswer(**structs.asdict(merged), cells=cells), accepted)

    async def route(self, body: bytes, media_type: str, accepted: str, headers: Mapping[str, str]) -> bytes:
        """Pick of the candidates of all cells, and have the picked one's cell count the request."""
        parts, answers, head = await self._ask("route", "/v1/candidates", body, media_type, headers, _decode_candidates)
        policy, policy_input = self._policy(head)
        fields = _fields_of(body, media_type)
        cells = list(answers)
        left = dict(enumerate(answers.values()))
        gone: Counter[int] = Counter()
        candidates = await _merged(left)
        while (picked := candidates.pick(policy, policy_input)) is not None:
            place = picked.cell_of[picked.order[0].pod]
            routed = await self._count(cells[place], picked, fields, media_type, headers)
            if isinstance(routed, RouteAnswer):
                found = _cells_of(parts, {cells[number]: answer.view for number, answer in left.items()})
                return encode(_answer(list(answers.values()), left, picked, policy, head, f"{cells[place].name}-{routed.id}", found), accepted)
            gone[place] += 1
            if routed.status == 503 and gone[place] < GONE_PODS_MAX:
                candidates.drop(picked.order[0].pod)
                continue
            del left[place]
            candidates = await _merged(left)
            parts.of[cells[place]] = routed
        raise Problem(503, "no pod can be picked: no cell that answers has one that may be", retry_after_s=RETRY_AFTER_S)

    def _policy(self, head: _Head) -> tuple[PolicyName, PolicyInput]:
        policy = policy_for(head.policy, self._settings.route_policy, head.session_id)
        if head.model not in self._turns:
            if len(self._turns) >= MODELS_MAX:
                self._turns.clear()
            self._turns[head.model] = self._random.randrange(TURN_MAX)
        self._turns[head.model] += 1
        limits = self._settings.limits.routing
        return policy, PolicyInput(head.session_id, self._turns[head.model], limits.route_min_match_blocks, limits.route_overload_s)

    @staticmethod
    async def _count(cell: Cell, picked: MergedPick, fields: Mapping[str, Raw], media_type: str, headers: Mapping[str, str]) -> RouteAnswer | Part:
        """Have the cell pick this pod, the only one it may: then the request counts there. Where it does not: what became of the cell's part, with
        status 503 where that pod cannot be picked any more."""
        narrowed = {name: value for name, value in fields.items() if name != "exclude"}
        for name, value in (("pods", [picked.order[0].pod]), ("limit", 1)):
            narrowed[name] = Raw(encode(value, media_type))
        part = await cell.ask("/v1/route", encode(narrowed, media_type), headers)
        if part.state != "answered":
            return part
        try:
            return _decode_route(part.body) if part.status == 200 else Part("failed")
        except msgspec.MsgspecError:
            return Part("failed")

    async def done(self, request: DoneRequest, headers: Mapping[str, str]) -> DoneAnswer:
        """Tell the cell that counts the request."""
        name, _, identifier = request.id.partition("-")
        cell = self._cells.named(name)
        if cell is None or not identifier:
            return DoneAnswer(request.id, known=False)
        part = await cell.ask("/v1/route/done", encode(DoneRequest(identifier), MSGPACK), {**headers, "Content-Type": MSGPACK})
        if part.state != "answered":
            raise Problem(503, f"cell {cell.url} does not answer", retry_after_s=RETRY_AFTER_S)
        _check(part)
        try:
            return DoneAnswer(request.id, _decode_done(part.body).known)
        except msgspec.MsgspecError:
            raise Problem(503, f"cell {cell.url} answers nothing that can be read") from None

    async def models(self, headers: Mapping[str, str]) -> ModelsAnswer:
        """Those of all cells, by name."""
        parts = await self._cells.ask("/v1/models", None, headers)
        if parts.refusal is not None:
            _check(parts.refusal)
        found: dict[str, set[str]] = {}
        for answer in (await _decoded(parts, _decode_models)).values():
            for model in answer.models:
                found.setdefault(model.model, set()).update(model.pods)
        return ModelsAnswer([ModelAnswer(name, sorted(pods)) for name, pods in sorted(found.items())])

    async def _ask(
        self, route: str, path: str, body: bytes, media_type: str, headers: Mapping[str, str], decode: Callable[[bytes], T]
    ) -> tuple[Parts, dict[Cell, T], _Head]:
        """What became of each cell's part, the answers of which there is at least one, and what the front has to know of the request."""
        began_s = time.perf_counter()
        parts = await self._cells.ask(path, body, headers)
        self._metrics.seconds[route].observe(time.perf_counter() - began_s)
        if parts.refusal is not None:
            _check(parts.refusal)
        answers = await _decoded(parts, decode)
        head = _head_of(body, media_type)
        if not answers:
            raise _nothing(parts, head.model)
        return parts, answers, head


async def _decoded(parts: Parts, decode: Callable[[bytes], T]) -> dict[Cell, T]:
    """The answers by cell. One that cannot be read is no answer. Other requests have their turn between large ones."""
    found = {}
    for cell, body in parts.answers.items():
        if len(body) > LARGE_BYTES:
            await asyncio.sleep(0)
        try:
            found[cell] = decode(body)
        except msgspec.MsgspecError:
            parts.of[cell] = Part("failed")
    return found


async def _merged(answers: Mapping[int, CandidatesAnswer]) -> Candidates:
    """Other requests have their turn between large ones."""
    candidates = Candidates()
    for place, answer in answers.items():
        candidates.add(place, answer)
        if len(answer.reason) > LARGE_PODS:
            await asyncio.sleep(0)
    return candidates


def _check(part: Part) -> None:
    """Raises Problem for what a cell says that is wrong with the request."""
    if part.status == 200:
        return
    try:
        detail = _decode_problem(part.body).detail
    except msgspec.MsgspecError:
        detail = "a cell refuses the request, and does not say why"
    raise Problem(part.status, detail)


def _head_of(body: bytes, media_type: str) -> _Head:
    """Raises Problem."""
    return _read(_HEADS[media_type], body)


def _fields_of(body: bytes, media_type: str) -> dict[str, Raw]:
    """All fields as they are written. Raises Problem."""
    return _read(_FIELDS[media_type], body)


def _read(decode: Callable[[bytes], T], body: bytes) -> T:
    """Cells may be lenient in what the front is not. Raises Problem."""
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(422, f"the body is not a request: {error}") from None


def _nothing(parts: Parts, model: str) -> Problem:
    """No cell has a pod of the model, or none that answers."""
    if all(part.state == "unknown_model" for part in parts.of.values()):
        return unknown_model(model)
    silent = ", ".join(f"{cell.url} is {part.state}" for cell, part in parts.of.items() if part.state != "unknown_model")
    return Problem(503, f"no cell that answers knows model {model!r}: {silent}", retry_after_s=RETRY_AFTER_S)


def _cells_of(parts: Parts, views: Mapping[Cell, ViewAnswer]) -> list[CellAnswer]:
    return [CellAnswer(cell.url, part.state, views[cell].age_s if cell in views else None) for cell, part in parts.of.items()]


def _answer(
    asked: list[CandidatesAnswer],
    left: Mapping[int, CandidatesAnswer],
    picked: MergedPick,
    policy: PolicyName,
    head: _Head,
    identifier: str,
    cells: list[CellAnswer],
) -> CellsRouteAnswer:
    order = [candidate.pod for candidate in picked.order][: head.limit]
    reasons = picked.reasons if head.limit is None else {pod: picked.reasons[pod] for pod in order}
    first = asked[0]
    return CellsRouteAnswer(
        model=head.model,
        tokens=max(answer.tokens for answer in left.values()),
        id=identifier,
        pod=order[0],
        rank=picked.order[0].rank,
        fallbacks=order[1:],
        policy=policy,
        picked_for=picked.picked_for,
        reason=reasons,
        http={pod: picked.http[pod] for pod in order if pod in picked.http},
        view=structs.replace(first.view, source="cells", age_s=max(answer.view.age_s for answer in left.values())),
        unknown_pods=unknown_pods(asked),
        cells=cells,
    )
