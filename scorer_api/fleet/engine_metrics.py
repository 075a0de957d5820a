"""A pod's metrics as its engine's `/metrics` tells them, with vLLM's names."""

from scorer_api.fleet.pod import Pod


def metrics_text(pod: Pod) -> str:
    """In the Prometheus text format."""
    counters, model = pod.counters, pod.model
    values = {
        "vllm:num_requests_running": len(pod.running),
        "vllm:num_requests_waiting": len(pod.waiting),
        "vllm:kv_cache_usage_perc": pod.cache.used / pod.cache.capacity,
        "vllm:request_prompt_tokens_count": counters.requests,
        "vllm:request_prompt_tokens_sum": counters.finished_prompt_tokens,
        "vllm:prompt_tokens_total": counters.prompt_tokens,
        "vllm:prompt_tokens_cached_total": counters.cached_tokens,
        "vllm:request_prefill_kv_computed_tokens_sum": counters.prefill_tokens,
        "vllm:request_prefill_time_seconds_sum": counters.prefill_s,
        f'vllm:cache_config_info{{block_size="{model.block_size}",num_gpu_blocks="{pod.cache.capacity}"}}': 1,
    }
    return "".join(f"{name} {value}\n" for name, value in values.items())
