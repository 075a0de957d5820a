"""The routes of Dynamo's stand-alone indexer, as its version 1.6.1 answers them.

`/query` needs the tokens alone. `/query_by_hash` and `/dump` speak of local block hashes, which `HashChains` knows where streams run in this process:
with Redis they are answered with 501.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta, Struct

from indexer.config.settings import Settings
from indexer.core.events import HASH_MASK, Tier
from indexer.core.names import StreamKey
from indexer.http.access import Access
from indexer.http.negotiation import JSON, read_body, respond, respond_in_pieces
from indexer.http.problems import Problem
from indexer.http.routes import Pods
from indexer.streams.pool import PodStatus
from scorer_api.api.resolve import RequestResolver
from scorer_api.compat.bodies import Unreadable, decode_tokens, decoded
from scorer_api.compat.dumps import BlockTables, stored_events
from scorer_api.compat.hash_chains import ROOT, HashChains
from scorer_api.compat.instances import DEFAULT_GROUP, INSTANCE_MAX, instance_of, model_of, name_and_group
from scorer_api.compat.prompts import whole_prompt
from scorer_api.compat.registrations import Conflict, Registrations, spec_of
from scorer_api.index.prompt import GivenKeys, Prompt, Query
from scorer_api.index.reach import RankReach
from scorer_api.index.view import View

QUERY_BYTES_MAX = 8 * 2**20
BYTES_MAX = 2 * 2**20
HASHES_PER_TURN = 4_096
HEALTH = "/health"
DIRECT = frozenset({"/query", "/query_by_hash"})
NOT_HERE = "local block hashes are known only where engines are followed in this process and no Redis is shared: use /query"

Instance = Annotated[int, Meta(ge=0)]
Handler = Callable[[Request], Awaitable[Response]]


class RegisterRequest(Struct, frozen=True):
    """One rank of an instance."""

    instance_id: Instance
    endpoint: str
    model_name: str
    block_size: Annotated[int, Meta(ge=1, lt=2**32)]
    routing_group: str = DEFAULT_GROUP
    dp_rank: Annotated[int, Meta(ge=0, lt=2**32)] | None = None
    replay_endpoint: str | None = None


class UnregisterRequest(Struct, frozen=True):
    """Without a routing group or a rank: all of them."""

    instance_id: Instance
    model_name: str
    routing_group: str | None = None
    dp_rank: Annotated[int, Meta(ge=0, lt=2**32)] | None = None


class QueryRequest(Struct, frozen=True):
    """A prompt."""

    token_ids: list[int]
    model_name: str
    routing_group: str = DEFAULT_GROUP
    lora_name: str | None = None
    cache_salt: str | None = None


class HashQueryRequest(Struct, frozen=True):
    """Local block hashes, as signed integers."""

    block_hashes: list[Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]]
    model_name: str
    routing_group: str = DEFAULT_GROUP
    cache_salt: str | None = None


class InstanceAnswer(Struct):
    """Matched tokens of an instance: on the gpu, down to the cpu and down to the disk, each of its best rank; `dp`: on the gpu, by rank."""

    longest_matched: int = 0
    gpu: int = 0
    dp: dict[str, int] = {}
    cpu: int = 0
    disk: int = 0


class QueryAnswer(Struct, frozen=True):
    """`scores`: instance → rank → tokens matched on the gpu. `frequencies` is always empty, as in the original with several threads."""

    scores: dict[str, dict[str, int]]
    frequencies: list[int]
    instances: dict[str, InstanceAnswer]


class ListenerAnswer(Struct, frozen=True, omit_defaults=True):
    """The connection to one rank."""

    endpoint: str
    status: str
    last_error: str | None = None


class WorkerAnswer(Struct, frozen=True):
    """An instance and its ranks."""

    instance_id: int
    source: str
    status: str
    model_name: str
    routing_group: str
    block_size: int | None
    endpoints: dict[str, str]
    listeners: dict[str, ListenerAnswer]


_REGISTER = msgspec.json.Decoder(RegisterRequest).decode
_UNREGISTER = msgspec.json.Decoder(UnregisterRequest).decode
_QUERY = msgspec.json.Decoder(QueryRequest).decode
_HASH_QUERY = msgspec.json.Decoder(HashQueryRequest).decode


def add_dynamo(
    router: APIRouter,
    settings: Settings,
    view: View,
    pods: Pods,
    resolver: RequestResolver,
    access: Access,
    chains: dict[str, HashChains] | None,
    tables: BlockTables | None,
) -> None:
    """Add the routes. `chains`: model → its chains, `tables`: the blocks of streams; None where streams do not run here alone."""
    routes = DynamoRoutes(settings, view, pods, resolver, access, chains, tables)
    for path, method, handler in routes.all():
        router.add_api_route(path, handler, methods=[method], include_in_schema=False)


class DynamoRoutes:
    """The handlers. Errors are `{"error": …}`, or plain text for a body that does not fit, as the original's."""

    def __init__(
        self,
        settings: Settings,
        view: View,
        pods: Pods,
        resolver: RequestResolver,
        access: Access,
        chains: dict[str, HashChains] | None,
        tables: BlockTables | None,
    ) -> None:
        self._bytes_max = settings.body_bytes_max
        self._timeout_s = settings.limits.http.body_timeout_s
        self._view = view
        self._pods = pods
        self._resolver = resolver
        self._access = access
        self._chains = chains
        self._tables = tables
        self._registrations = Registrations(settings, view, pods)

    def all(self) -> Iterator[tuple[str, str, Handler]]:
        """Path, method and handler of each route."""
        yield "/register", "POST", self._guarded(self.register)
        yield "/unregister", "POST", self._guarded(self.unregister)
        yield "/workers", "GET", self._guarded(self.workers)
        yield "/query", "POST", self._guarded(self.query)
        yield "/query_by_hash", "POST", self._guarded(self.query_by_hash)
        yield "/dump", "GET", self._guarded(self.dump)
        yield HEALTH, "GET", self._guarded(self.health)

    def _guarded(self, handle: Handler) -> Handler:
        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except Unreadable as error:
                if error.is_malformed:
                    return Response(f"Failed to parse the request body as JSON: {error.detail}", 400, media_type="text/plain")
                return Response(f"Failed to deserialize the JSON body into the target type: {error.detail}", 422, media_type="text/plain")
            except Problem as problem:
                return _error(problem.status, problem.detail, problem.headers | ({"Connection": "close"} if problem.closes else {}))

        return guarded

    async def _body(self, request: Request, bytes_max: int) -> bytes:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != JSON and not (media_type.startswith("application/") and media_type.endswith("+json")):
            raise Problem(415, f"Expected request with `Content-Type: {JSON}`")
        return await read_body(request, min(bytes_max, self._bytes_max), self._timeout_s)

    async def health(self, request: Request) -> Response:
        """The process lives."""
        return Response()

    # Instances

    async def register(self, request: Request) -> Response:
        """Follow one rank of an instance."""
        self._access.check_change(request)
        asked = decoded(await self._body(request, BYTES_MAX), _REGISTER)
        if asked.instance_id > INSTANCE_MAX:
            raise Unreadable(f"instance_id: invalid value: integer `{asked.instance_id}`, expected u64")
        model, pod = model_of(asked.model_name, asked.routing_group), str(asked.instance_id)
        spec = spec_of(pod, model, asked.endpoint, asked.replay_endpoint, asked.dp_rank or 0)
        try:
            await self._registrations.register(spec, asked.block_size)
        except Conflict as conflict:
            return _error(409, str(conflict))
        return respond({"status": "ok"}, status=201)

    async def unregister(self, request: Request) -> Response:
        """Follow a rank, or an instance, no longer."""
        self._access.check_change(request)
        asked = decoded(await self._body(request, BYTES_MAX), _UNREGISTER)
        pod = self._pod(asked.instance_id)
        if pod is None:
            return _error(404, f"instance {asked.instance_id} not found")
        specs = self._pods.specs(pod)
        name, group = name_and_group(specs[0].model)
        if name != asked.model_name or asked.routing_group not in (None, group):
            return _error(404, f"instance {asked.instance_id} is registered for model={name} routing_group={group}")
        # As in the original, a rank counts together with a routing group only.
        rank = None if asked.routing_group is None else asked.dp_rank
        if rank is not None and not any(rank in spec.stream_ranks for spec in specs):
            return _error(404, f"instance {asked.instance_id} dp_rank {rank} not found")
        await self._registrations.unregister(pod, rank)
        return respond({"status": "ok"})

    def _pod(self, instance: int) -> str | None:
        """The pod with this number, if its events endpoints are known here."""
        return next((pod for pod in self._pods.pod_names() if instance_of(pod) == instance and self._pods.specs(pod)), None)

    async def workers(self, request: Request) -> Response:
        """Every instance with its ranks; those of one model or routing group, if the query names it."""
        wanted = request.query_params
        found = []
        for pod in self._pods.pods():
            name, group = name_and_group(pod.model)
            if wanted.get("model_name", name) == name and wanted.get("routing_group", group) == group:
                found.append(self._worker(pod, name, group))
            await asyncio.sleep(0)
        return respond(found)

    def _worker(self, pod: PodStatus, name: str, group: str) -> WorkerAnswer:
        listeners = {}
        for stream in pod.streams:
            status = "active" if stream.connected else "pending"
            listeners[str(stream.rank)] = ListenerAnswer(stream.events or "", status, None if stream.connected else stream.last_error)
        status = "pending" if any(each.status == "pending" for each in listeners.values()) else "active"
        endpoints = {rank: each.endpoint for rank, each in listeners.items()}
        block_size = self._registrations.block_size(pod.model)
        return WorkerAnswer(instance_of(pod.pod), "zmq", status, name, group, block_size, endpoints, listeners)

    # Queries

    async def query(self, request: Request) -> Response:
        """Which instances hold the longest prefix of these tokens?"""
        tokens = await decode_tokens(await self._body(request, QUERY_BYTES_MAX), JSON, _QUERY)
        asked: QueryRequest = tokens.request
        model = model_of(asked.model_name, asked.routing_group)
        prompt = whole_prompt(model, tokens.packed, asked.lora_name, asked.cache_salt)
        return self._answer(await self._resolver.prepared(prompt), asked.model_name, asked.routing_group)

    async def query_by_hash(self, request: Request) -> Response:
        """The same of local block hashes."""
        asked = decoded(await self._body(request, BYTES_MAX), _HASH_QUERY)
        if asked.cache_salt is not None:
            return _error(400, "cache_salt is not accepted by /query_by_hash; block_hashes must already include the intended cache salt")
        if self._chains is None:
            return _error(501, NOT_HERE)
        model = model_of(asked.model_name, asked.routing_group)
        keys: list[int] = []
        if (chains := self._chains.get(model)) is not None:
            for start in range(0, len(asked.block_hashes), HASHES_PER_TURN):
                some = [each & HASH_MASK for each in asked.block_hashes[start : start + HASHES_PER_TURN]]
                found = chains.keys_of(some, keys[-1] if keys else ROOT)
                keys += found
                if len(found) < len(some):
                    break
                await asyncio.sleep(0)
        block_size = self._registrations.block_size(model) or 1
        return self._answer(Prompt(model, b"", prepared=GivenKeys(keys, block_size)), asked.model_name, asked.routing_group)

    def _answer(self, query: Query, name: str, group: str) -> Response:
        try:
            reaches = self._view.look_up(query).reaches()
        except KeyError:
            return _error(404, f"no indexer for model={name} routing_group={group}")
        scores: dict[str, dict[str, int]] = {}
        instances: dict[str, InstanceAnswer] = {}
        for pod, ranks in reaches.items():
            matching = {rank: reach for rank, reach in ranks.items() if reach.matched}
            if matching:
                instance = str(instance_of(pod))
                instances[instance] = _summary(matching)
                if on_gpu := {str(rank): reach.alone[Tier.GPU] for rank, reach in matching.items() if reach.alone[Tier.GPU]}:
                    scores[instance] = on_gpu
        return respond(QueryAnswer(scores, [], instances))

    # Dump

    async def dump(self, request: Request) -> Response:
        """All held blocks, as the events that would announce them."""
        if self._chains is None or self._tables is None:
            return _error(501, NOT_HERE)
        return await respond_in_pieces(self._dumped(self._chains, self._tables), JSON)

    async def _dumped(self, chains: dict[str, HashChains], tables: BlockTables) -> AsyncGenerator[bytes, None]:
        before = b"{"
        for model, pods in self._view.models().items():
            block_size = self._registrations.block_size(model)
            key = msgspec.json.encode(":".join(name_and_group(model)))
            yield before + key + b':{"block_size":%b,"events":[' % msgspec.json.encode(block_size)
            comma = b""
            for pod in pods:
                for rank in [rank for spec in self._pods.specs(pod) for rank in spec.stream_ranks]:
                    table = tables(StreamKey(model, pod, rank))
                    if table is None or model not in chains:
                        continue
                    for events in stored_events(instance_of(pod), rank, table, chains[model].local_hash):
                        if events:
                            yield comma + b",".join(events)
                            comma = b","
                        await asyncio.sleep(0)
            yield b"]}"
            before = b","
        yield b"{}" if before == b"{" else b"}"


def _summary(ranks: dict[int, RankReach]) -> InstanceAnswer:
    disk = Tier.OTHER  # the lowest tier that is a pod's own: all that it holds
    return InstanceAnswer(
        longest_matched=max(reach.matched for reach in ranks.values()),
        gpu=max(reach.alone[Tier.GPU] for reach in ranks.values()),
        dp={str(rank): reach.alone[Tier.GPU] for rank, reach in sorted(ranks.items())},
        cpu=max(reach.down_to[Tier.CPU] for reach in ranks.values()),
        disk=max(reach.down_to[disk] for reach in ranks.values()),
    )


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    answer: dict[str, Any] = {"error": message}
    return respond(answer, status=status, headers=headers)
