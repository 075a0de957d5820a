"""The routes of Mooncake's conductor: `/register`, `/unregister`, `/query` and `/services`.

Its newer releases speak msgpack alone, older ones JSON: a request is answered in the format that it comes in. Errors are
`{"error": …, "reason": …, "field": …, "index": …}`, the last three where they are known.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.block_keys import TOKEN_BYTES
from indexer.core.events import Tier
from indexer.http.access import Access
from indexer.http.negotiation import JSON, MSGPACK, read_body, respond
from indexer.http.problems import Problem
from indexer.http.routes import Pods
from scorer_api.api.resolve import RequestResolver
from scorer_api.compat.bodies import Unreadable, decode_tokens, decoded
from scorer_api.compat.instances import DEFAULT_GROUP, model_of, name_and_group
from scorer_api.compat.prompts import whole_prompt
from scorer_api.compat.registrations import Conflict, Registrations, spec_of
from scorer_api.index.reach import RankReach
from scorer_api.index.view import View

DIRECT = frozenset({"/query"})
RANK_MAX = 2**31 - 1
ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
REGISTER_FIELDS = frozenset(
    {
        *("block_size", "cache_group", "dp_rank", "endpoint", "hash_profile", "instance_id", "lora_name", "modelname", "replay_endpoint"),
        *("tenant_id", "type", "additionalsalt"),
    }
)
UNREGISTER_FIELDS = frozenset({"dp_rank", "instance_id", "tenant_id", "type", "modelname", "lora_name", "block_size"})

Handler = Callable[[Request], Awaitable[Response]]


class Invalid(Exception):
    """A request is refused with 400. Attributes: `answer`, the body of the response."""

    def __init__(self, reason: str, message: str, field: str | None = None, index: int | None = None) -> None:
        super().__init__(message)
        self.answer: dict[str, Any] = {"error": message, "reason": reason}
        if field is not None:
            self.answer["field"] = field
        if index is not None:
            self.answer["index"] = index


class QueryRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt. `token_ids`: in msgpack also a bin of little-endian int32."""

    model: str
    block_size: int
    token_ids: list[int] | bytes
    tenant_id: str = DEFAULT_GROUP
    lora_name: str = ""
    cache_salt: str | None = None
    instance_id: str | None = None


class Registered(Struct, frozen=True):
    """One rank of an instance, as it was registered; `/services` shows it."""

    Endpoint: str
    ReplayEndpoint: str
    Type: str
    ModelName: str
    LoraName: str
    TenantID: str
    InstanceID: str
    BlockSize: int
    DPRank: int
    CacheGroup: int | None
    HashProfile: dict[str, str]


_QUERY = {JSON: msgspec.json.Decoder(QueryRequest).decode, MSGPACK: msgspec.msgpack.Decoder(QueryRequest).decode}
_OBJECT = {JSON: msgspec.json.Decoder(dict[str, Any]).decode, MSGPACK: msgspec.msgpack.Decoder(dict[str, Any]).decode}


def add_mooncake(router: APIRouter, settings: Settings, view: View, pods: Pods, resolver: RequestResolver, access: Access) -> None:
    """Add the routes."""
    for path, method, handler in MooncakeRoutes(settings, view, pods, resolver, access).all():
        router.add_api_route(path, handler, methods=[method], include_in_schema=False)


class MooncakeRoutes:
    """The handlers."""

    def __init__(self, settings: Settings, view: View, pods: Pods, resolver: RequestResolver, access: Access) -> None:
        self._bytes_max = settings.body_bytes_max
        self._timeout_s = settings.limits.http.body_timeout_s
        self._view = view
        self._pods = pods
        self._resolver = resolver
        self._access = access
        self._registrations = Registrations(settings, view, pods)
        self._registered: dict[tuple[str, int], Registered] = {}

    def all(self) -> Iterator[tuple[str, str, Handler]]:
        """Path, method and handler of each route."""
        yield "/register", "POST", self._guarded(self.register)
        yield "/unregister", "POST", self._guarded(self.unregister)
        yield "/query", "POST", self._guarded(self.query)
        yield "/services", "GET", self._guarded(self.services)

    def _guarded(self, handle: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            media_type = _media_type(request) or MSGPACK
            try:
                return await handle(request)
            except Invalid as invalid:
                return respond(invalid.answer, media_type, 400)
            except Problem as problem:
                headers = problem.headers | ({"Connection": "close"} if problem.closes else {})
                return respond({"error": problem.detail}, media_type, problem.status, headers)

        return guarded

    async def _body(self, request: Request) -> tuple[bytes, str]:
        media_type = _media_type(request)
        if media_type is None:
            raise Invalid("unsupported_content_type", f"Content-Type must be {MSGPACK}")
        return await read_body(request, self._bytes_max, self._timeout_s), media_type

    async def _object(self, request: Request, allowed: frozenset[str]) -> tuple[dict[str, Any], str]:
        body, media_type = await self._body(request)
        try:
            given = decoded(body, _OBJECT[media_type])
        except Unreadable:
            raise _no_object(media_type) from None
        for name in given.keys() - allowed:
            raise Invalid("unknown_field", f"unsupported request field: {name}", name)
        return given, media_type

    # Instances

    async def register(self, request: Request) -> Response:
        """Follow one rank of an instance. The same registration again changes nothing."""
        self._access.check_change(request)
        given, media_type = await self._object(request, REGISTER_FIELDS)
        new = _registration(given)
        if self._registered.get((new.InstanceID, new.DPRank)) != new or not self._is_followed(new.InstanceID, new.DPRank):
            try:
                spec = spec_of(new.InstanceID, model_of(new.ModelName, new.TenantID), new.Endpoint, new.ReplayEndpoint or None, new.DPRank)
                await self._registrations.register(spec, new.BlockSize)
            except Conflict as conflict:
                raise Invalid("invalid_registration", str(conflict)) from None
            except Problem as problem:
                if problem.status != 400:
                    raise
                raise Invalid("invalid_registration", problem.detail) from None
            self._registered[new.InstanceID, new.DPRank] = new
        return respond({"status": "registered successfully", "instance_id": new.InstanceID}, media_type)

    def _is_followed(self, pod: str, rank: int) -> bool:
        return any(rank in spec.stream_ranks for spec in self._pods.specs(pod))

    async def unregister(self, request: Request) -> Response:
        """Follow a rank of an instance no longer."""
        self._access.check_change(request)
        given, media_type = await self._object(request, UNREGISTER_FIELDS)
        instance, tenant = _text(given, "instance_id"), _optional_text(given, "tenant_id") or DEFAULT_GROUP
        rank = _rank(given)
        name = f"{instance}|{tenant}|{rank}"
        specs = self._pods.specs(instance)
        if not self._is_followed(instance, rank) or name_and_group(specs[0].model)[1] != tenant:
            raise Problem(404, f"service not found: {name}")
        await self._registrations.unregister(instance, rank)
        self._registered.pop((instance, rank), None)
        return respond({"status": "unregistered successfully", "removed_instances": [name]}, media_type)

    async def services(self, request: Request) -> Response:
        """What was registered at this process, as far as it is followed yet."""
        known = [each for key, each in self._registered.items() if self._is_followed(*key)]
        accepts_json = JSON in request.headers.get("accept", "")
        return respond({"count": len(known), "services": known}, JSON if accepts_json else MSGPACK)

    # Queries

    async def query(self, request: Request) -> Response:
        """Which instances hold the longest prefix of these tokens?"""
        body, media_type = await self._body(request)
        try:
            tokens = await decode_tokens(body, media_type, _QUERY[media_type])
        except Unreadable as error:
            raise _no_object(media_type) if error.is_malformed else _field_error(error.detail, media_type) from None
        asked: QueryRequest = tokens.request
        _check_query(asked)
        prompt = whole_prompt(model_of(asked.model, asked.tenant_id or DEFAULT_GROUP), tokens.packed, asked.lora_name, asked.cache_salt)
        return respond({"instances": self._instances(await self._resolver.prepared(prompt), asked)}, media_type)

    def _instances(self, prompt: Any, asked: QueryRequest) -> dict[str, Any]:
        try:
            reaches = self._view.look_up(prompt, None if asked.instance_id is None else (asked.instance_id,)).reaches()
        except KeyError:
            return {}
        sizes = (None, asked.block_size)
        found = {pod: {rank: reach for rank, reach in ranks.items() if reach.block_size in sizes} for pod, ranks in reaches.items()}
        return {pod: _instance(ranks) for pod, ranks in found.items() if ranks}


def _instance(ranks: dict[int, RankReach]) -> dict[str, Any]:
    """The matched tokens of an instance, in each tier alone and of its best rank."""
    by_rank = {str(rank): {name: _alone(reach, name) for name in ("gpu", "cpu", "disk")} for rank, reach in sorted(ranks.items())}
    return {
        "longest_matched": max(reach.matched for reach in ranks.values()),
        "dp": {rank: each["gpu"] for rank, each in by_rank.items()},
        "rank_matches": by_rank,
        **{name: max(each[name] for each in by_rank.values()) for name in ("gpu", "cpu", "disk")},
    }


def _alone(reach: RankReach, name: str) -> int:
    return reach.alone[{"gpu": Tier.GPU, "cpu": Tier.CPU, "disk": Tier.DISK}[name]]


def _media_type(request: Request) -> str | None:
    given = request.headers.get("content-type", "")
    return MSGPACK if MSGPACK in given else JSON if JSON in given else None


def _no_object(media_type: str) -> Invalid:
    return Invalid("invalid_json", "Invalid JSON object") if media_type == JSON else Invalid("invalid_msgpack", "Invalid msgpack object")


def _field_error(detail: str, media_type: str) -> Invalid:
    """From what msgspec says of a query to a field and a reason."""
    if detail.startswith("token_ids["):
        position = int(detail.partition("[")[2].partition("]")[0])
        return Invalid("out_of_range", "token_ids element is outside the int32 range", "token_ids", position)
    if "missing required field" in detail:
        field = detail.split("`")[1]
        return Invalid("missing", f"{field} is required", field)
    if "unknown field" in detail:
        field = detail.split("`")[1]
        return Invalid("unknown_field", f"unsupported request field: {field}", field)
    if "`$." in detail:
        path = detail.rpartition("`$.")[2].rstrip("`")
        field, _, rest = path.partition("[")
        return Invalid("invalid_type", f"{field}: {detail}", field, int(rest.rstrip("]")) if rest.rstrip("]").isdecimal() else None)
    return _no_object(media_type)


def _check_query(asked: QueryRequest) -> None:
    if not asked.model:
        raise Invalid("invalid_value", "model must not be empty", "model")
    if asked.block_size <= 0:
        raise Invalid("out_of_range", "block_size must be greater than zero", "block_size")
    if isinstance(asked.token_ids, bytes) and len(asked.token_ids) % TOKEN_BYTES:
        raise Invalid("invalid_value", f"token_ids bin size must be a multiple of {TOKEN_BYTES}", "token_ids")


def _registration(given: dict[str, Any]) -> Registered:
    """Raises Invalid."""
    endpoint, kind, model, instance = (_text(given, name) for name in ("endpoint", "type", "modelname", "instance_id"))
    block_size = given.get("block_size")
    if block_size is None:
        raise Invalid("missing", "block_size is required", "block_size")
    if not isinstance(block_size, int) or isinstance(block_size, bool):
        raise Invalid("invalid_type", "block_size must be an integer", "block_size")
    if block_size <= 0:
        raise Invalid("out_of_range", "block_size must be greater than zero", "block_size")
    if kind.lower() not in ENGINES:
        raise Invalid("invalid_value", f"type must be {' or '.join(ENGINES.values())}: shared pools of Mooncake are not followed", "type")
    if given.get("cache_group") not in (None, 0):
        raise Invalid("unsupported", "only cache group zero is supported", "cache_group")
    return Registered(
        *(endpoint, _optional_text(given, "replay_endpoint"), ENGINES[kind.lower()], model, _optional_text(given, "lora_name")),
        *(_optional_text(given, "tenant_id") or DEFAULT_GROUP, instance, block_size, _rank(given), given.get("cache_group")),
        _hash_profile(given.get("hash_profile")),
    )


def _hash_profile(given: Any) -> dict[str, str]:
    """As it was given, with the digest that the conductor derives. It decides nothing here: block keys need only the tokens."""
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for item in given.items() for text in item):
        raise Invalid("invalid_type", "hash_profile must be a map of strings", "hash_profile")
    seed = given.get("python_hash_seed", "").encode()
    return {**given, "root_digest": hashlib.sha256(_cbor_head(len(seed)) + seed).hexdigest()}


def _cbor_head(length: int) -> bytes:
    """The head of a text of so many bytes in canonical CBOR."""
    if length < 24:
        return bytes([0x60 | length])
    size = next(size for size in (1, 2, 4, 8) if length < 256**size)
    return bytes([0x78 + (1, 2, 4, 8).index(size)]) + length.to_bytes(size, "big")


def _text(given: dict[str, Any], field: str) -> str:
    if field not in given:
        raise Invalid("missing", f"{field} is required", field)
    text = _optional_text(given, field)
    if not text:
        raise Invalid("invalid_value", f"{field} must not be empty", field)
    return text


def _optional_text(given: dict[str, Any], field: str) -> str:
    text = given.get(field, "")
    if not isinstance(text, str):
        raise Invalid("invalid_type", f"{field} must be a string", field)
    return text


def _rank(given: dict[str, Any]) -> int:
    if "dp_rank" not in given:
        raise Invalid("missing", "dp_rank is required", "dp_rank")
    rank = given["dp_rank"]
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise Invalid("invalid_type", "dp_rank must be an integer", "dp_rank")
    if not 0 <= rank <= RANK_MAX:
        raise Invalid("out_of_range", "dp_rank must be a non-negative int", "dp_rank")
    return rank
