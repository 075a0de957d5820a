"""A router for OpenAI chat completions: to the pod that holds most of the chat, less what it is busy with. `uvicorn router_example:app` runs it."""

import os
from collections import Counter
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from scorer_api.client import AsyncClient, ClientError

indexer = AsyncClient(os.environ.get("KV_INDEXER_URL", "http://127.0.0.1:8080"), timeout_s=1.0)
engines, app = httpx.AsyncClient(timeout=600), FastAPI()
pods: dict[str, dict[str, float]] = {}  # by model, from the newest answer: each pod's score
busy: Counter[str] = Counter()  # requests in flight, by pod


async def choose(model: str, body: dict) -> str:
    try:
        answer = await indexer.score(model, messages=body["messages"], tools=body.get("tools"))
        pods[model] = {pod.pod: pod.score - (pod.trust in ("stale", "expired")) for pod in answer.pods}
    except ClientError:  # nobody knows who holds what: whoever is least busy
        pods[model] = dict.fromkeys(pods.get(model, ()), 0.0)
    return max(pods[model], key=lambda pod: pods[model][pod] - 0.1 * busy[pod])


@app.post("/v1/chat/completions")
async def chat(request: Request) -> StreamingResponse:
    body = await request.json()
    answer = relay(await choose(body["model"], body), body)
    return StreamingResponse(answer, int(await anext(answer)), media_type="text/event-stream" if body.get("stream") else "application/json")


async def relay(pod: str, body: dict) -> AsyncIterator[bytes]:
    busy[pod] += 1
    try:
        async with engines.stream("POST", f"http://{pod}/v1/chat/completions", json=body) as response:
            yield str(response.status_code).encode()  # first the status, then the body as it comes
            async for piece in response.aiter_bytes():
                yield piece
    finally:
        busy[pod] -= 1
