"""A router for OpenAI's API: to the pod that holds most of the prompt, less what it is busy with. `uvicorn router_example:app` runs it."""

import asyncio
import os
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

indexer = httpx.AsyncClient(base_url=os.environ.get("KV_INDEXER_URL", "http://127.0.0.1:8080"), timeout=3)
engines, app = httpx.AsyncClient(timeout=httpx.Timeout(600, connect=2)), FastAPI(openapi_url=None)
known: list[str] = []  # pods of former picks, for when the indexer is away
AWAY = b'{"error": {"message": "no pod answers", "type": "service_unavailable_error", "param": null, "code": 503}}'
ending: set[asyncio.Task[None]] = set()


@app.api_route("/v1/{path:path}", methods=["GET", "POST"])
async def route(path: str, request: Request) -> Response:
    body, headers = await request.body(), {"content-type": request.headers.get("content-type", "application/json")}
    try:
        pick = await indexer.request(request.method, f"/v1/pick/v1/{path}", content=body, headers=headers)
        if pick.status_code < 500 and pick.is_error:
            return Response(pick.content, pick.status_code, media_type="application/json")  # such as an unknown model
        pods = [pick.headers["x-gateway-destination-endpoint"], *filter(None, pick.headers.get("x-kv-fallbacks", "").split(","))]
        known[:] = dict.fromkeys([*pods, *known[:64]])
    except (httpx.HTTPError, KeyError):
        pick, pods = None, list(known)
    for pod in pods:
        try:
            asked = engines.build_request(request.method, f"http://{pod}/v1/{path}", params=request.query_params, content=body, headers=headers)
            answer = await engines.send(asked, stream=True)
        except httpx.TransportError:
            continue
        if answer.status_code != 503 or pod == pods[-1]:
            return StreamingResponse(relay(answer, pick), answer.status_code, media_type=answer.headers.get("content-type"))
        await answer.aclose()
    return Response(AWAY, 503, media_type="application/json")


async def relay(answer: httpx.Response, pick: httpx.Response | None) -> AsyncIterator[bytes]:
    try:
        async for piece in answer.aiter_bytes():
            yield piece
    finally:  # in a task: a client that hangs up cancels this one
        ending.add(task := asyncio.create_task(end(answer, pick)))
        task.add_done_callback(ending.discard)


async def end(answer: httpx.Response, pick: httpx.Response | None) -> None:
    await answer.aclose()
    if pick is not None and "x-kv-request-id" in pick.headers:
        await indexer.post("/v1/route/done", json={"id": pick.headers["x-kv-request-id"]})
