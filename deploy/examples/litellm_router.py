"""A callback of LiteLLM's proxy: of a model's deployments the one that the service picks, all of them while nobody answers.

KV_INDEXER_URL says where the service is, KV_INDEXER_TOKEN has its token if it asks for one.
"""

import os
from typing import Any

import httpx
from litellm.integrations.custom_logger import CustomLogger

ID = "kv_indexer_id"


class KvIndexerRouter(CustomLogger):
    def __init__(self) -> None:
        super().__init__()
        token = os.environ.get("KV_INDEXER_TOKEN")
        headers = {} if token is None else {"X-KV-Indexer-Token": token}
        self._service = httpx.AsyncClient(base_url=os.environ.get("KV_INDEXER_URL", "http://127.0.0.1:8080"), headers=headers, timeout=3)

    async def async_filter_deployments(
        self, model: str, healthy_deployments: list[Any], messages: Any, request_kwargs: Any = None, parent_otel_span: Any = None
    ) -> list[Any]:
        asked = request_kwargs or {}
        sources = {"messages": messages, **{name: asked.get(name) for name in ("prompt", "tools", "chat_template_kwargs")}}
        prompt = {name: value for name, value in sources.items() if value}
        if len(healthy_deployments) < 2 or not prompt.keys() & {"messages", "prompt"}:
            return healthy_deployments
        # hosted_vllm/my/model is the model my/model of the engine.
        engine_model = healthy_deployments[0]["litellm_params"]["model"].partition("/")[2]
        by_base = {str(each["litellm_params"].get("api_base")).rstrip("/").removesuffix("/v1"): each for each in healthy_deployments}
        try:
            response = await self._service.post("/v1/route", json={"model": engine_model, **prompt})
            response.raise_for_status()
            pick = response.json()
        except httpx.HTTPError:
            return healthy_deployments
        asked.setdefault("metadata", {})[ID] = pick["id"]
        order = [by_base[base] for pod in (pick["pod"], *pick["fallbacks"]) if (base := pick["http"][pod]) in by_base]
        return order[:1] or healthy_deployments

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        await self._done(kwargs)

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        await self._done(kwargs)

    async def _done(self, kwargs: Any) -> None:
        if name := (kwargs["litellm_params"].get("metadata") or {}).get(ID):
            await self._service.post("/v1/route/done", json={"id": name})


router = KvIndexerRouter()
