"""What an engine's metrics say of its load, by hand."""

import pytest

from indexer.engines.load import Load
from indexer.engines.load_metrics import LoadMeter


def vllm(running: float = 3, waiting: float = 2, usage: float = 0.25, **counters: float) -> str:
    """As vLLM writes it, with what nobody here wants to know between."""
    lines = [
        "# HELP vllm:num_requests_running Number of requests in model execution batches.",
        "# TYPE vllm:num_requests_running gauge",
        f'vllm:num_requests_running{{engine="0",model_name="my/{{model}}"}} {running}',
        f'vllm:num_requests_waiting{{engine="0",model_name="my/{{model}}"}} {waiting}',
        f'vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="capacity"}} {waiting + 50}',
        f'vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {usage}',
        'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 7.0',
        'python_gc_objects_collected_total{generation="0"} 12345.0',
    ]
    return "\n".join([*lines, *(f'vllm:{name}{{engine="0",model_name="m"}} {value!r}' for name, value in counters.items())]) + "\n"


def test_what_runs_and_waits_and_how_full_the_cache_is() -> None:
    assert LoadMeter().read(vllm(), 1.0) == Load(3, 2, 0.25)


def test_ranks_count_together() -> None:
    text = "\n".join(
        [
            'vllm:num_requests_running{engine="0"} 3.0',
            'vllm:num_requests_running{engine="1"} 4.0',
            'vllm:num_requests_waiting{engine="0"} 0.0',
            'vllm:num_requests_waiting{engine="1"} 5.0',
            'vllm:kv_cache_usage_perc{engine="0"} 0.5',
            'vllm:kv_cache_usage_perc{engine="1"} 1.0',
        ]
    )
    assert LoadMeter().read(text, 1.0) == Load(7, 5, 0.75)


def test_older_names_of_vllm_and_those_of_sglang() -> None:
    older = "vllm:num_requests_running 1.0\nvllm:num_requests_waiting 0.0\nvllm:gpu_cache_usage_perc 0.125\n"
    assert LoadMeter().read(older, 1.0) == Load(1, 0, 0.125)
    labels = '{model_name="meta-llama/Llama-3.1-8B-Instruct"}'
    sglang = [
        ("num_running_reqs", 161.0),
        ("num_queue_reqs", 2826.0),
        ("token_usage", 0.28),
        ("prompt_tokens_total", 8.1e6),
        ("num_requests_total", 3e3),
    ]
    text = "".join(f"sglang:{name}{labels} {value!r}\n" for name, value in sglang)
    assert LoadMeter().read(text, 1.0) == Load(161, 2826, 0.28, 2700.0, requests=3_000 + 161 + 2826)


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        ('block_size="16",num_gpu_blocks="1000"', 16_000.0),
        # Where groups of layers have blocks of their own sizes the product says nothing: newer ones tell the tokens themselves.
        ('block_size="4",kv_cache_size_tokens="123456",num_gpu_blocks="1000"', 123_456.0),
        ('block_size="16",kv_cache_size_tokens="None",num_gpu_blocks="1000"', 16_000.0),
        ('block_size="16",num_gpu_blocks="None"', None),
        ('block_size="-16",num_gpu_blocks="1e3"', None),
        ('block_size="16",num_gpu_blocks="٣"', None),
        (f'block_size="16",num_gpu_blocks="{"9" * 400}"', None),
        ("", None),
    ],
)
def test_what_vllm_has_room_for(labels: str, tokens: float | None) -> None:
    text = f'{vllm()}vllm:cache_config_info{{cache_dtype="auto",engine="0"{"," * bool(labels)}{labels}}} 1.0\n'
    assert LoadMeter().read(text, 1.0) == Load(3, 2, 0.25, kv_tokens=tokens)


def test_the_rooms_of_ranks_are_added() -> None:
    config = 'vllm:cache_config_info{{block_size="16",engine="{}",num_gpu_blocks="{}"}} 1.0\n'
    assert LoadMeter().read(vllm() + config.format(0, 10) + config.format(1, 20), 1.0).kv_tokens == 480


def test_what_sglang_has_room_for() -> None:
    text = "sglang:num_running_reqs 1.0\nsglang:num_queue_reqs 0.0\nsglang:max_total_num_tokens 471258.0\n"
    assert LoadMeter().read(text, 1.0) == Load(1, 0, kv_tokens=471_258.0)


def test_how_long_prompts_are() -> None:
    meter = LoadMeter()
    # 10 requests with 1,000 tokens so far: 100 each.
    assert meter.read(vllm(request_prompt_tokens_count=10, request_prompt_tokens_sum=1000), 1.0).prompt_tokens_mean == 100
    # Then 2 with 400 each; a newer figure counts for 0.3.
    assert meter.read(vllm(request_prompt_tokens_count=12, request_prompt_tokens_sum=1800), 2.0).prompt_tokens_mean == pytest.approx(100 + 0.3 * 300)
    # Nothing new.
    assert meter.read(vllm(request_prompt_tokens_count=12, request_prompt_tokens_sum=1800), 3.0).prompt_tokens_mean == pytest.approx(190)


def test_how_fast_it_computes_prompts_by_the_time_that_requests_took() -> None:
    meter = LoadMeter()
    first = vllm(request_prefill_kv_computed_tokens_sum=1000, request_prefill_time_seconds_sum=9.0)
    assert meter.read(first, 1.0).prefill_tokens_per_s is None  # how fast it was when it started says nothing of now
    second = vllm(request_prefill_kv_computed_tokens_sum=3000, request_prefill_time_seconds_sum=9.5)
    assert meter.read(second, 2.0).prefill_tokens_per_s == 4000  # 2,000 tokens in half a second
    third = vllm(request_prefill_kv_computed_tokens_sum=4000, request_prefill_time_seconds_sum=10.5)
    assert meter.read(third, 3.0).prefill_tokens_per_s == 4000, "1,000 in a second, beside others: it can do more"
    # 255 tokens say nothing.
    fourth = vllm(request_prefill_kv_computed_tokens_sum=4255, request_prefill_time_seconds_sum=10.501)
    assert meter.read(fourth, 4.0).prefill_tokens_per_s == 4000


def test_a_measurement_like_no_other_does_not_count() -> None:
    """Of twenty the nine tenths: two that are far above the others change nothing, and what all say for a while does."""
    meter, tokens, seconds = LoadMeter(), 0, 0.0
    rates = [*[2000] * 17, 10**6, 10**6, 2000]
    for number, rate in enumerate([2000, *rates]):
        load = meter.read(vllm(request_prefill_kv_computed_tokens_sum=tokens, request_prefill_time_seconds_sum=seconds), float(number))
        tokens, seconds = tokens + 1000, seconds + 1000 / rate
    assert load.prefill_tokens_per_s == pytest.approx(2000)
    for number in range(64):
        load = meter.read(vllm(request_prefill_kv_computed_tokens_sum=tokens, request_prefill_time_seconds_sum=seconds), 100.0 + number)
        tokens, seconds = tokens + 1000, seconds + 1000 / 500
    assert load.prefill_tokens_per_s == pytest.approx(500), "another engine, or the same with other requests"


def test_what_an_engine_without_work_computed_says_nothing_of_its_rate() -> None:
    """It reports no times. 300 tokens in a second: it computed them in some milliseconds, and was idle."""
    meter = LoadMeter()
    meter.read(sglang(1, 1, num_running_reqs=0.0, num_queue_reqs=0.0, prompt_tokens_total=0.0, cached_tokens_total=0.0), 1.0)
    idle = meter.read(sglang(1, 1, num_running_reqs=0.0, num_queue_reqs=0.0, prompt_tokens_total=300.0, cached_tokens_total=0.0), 2.0)
    assert idle.prefill_tokens_per_s is None
    for number, tokens in enumerate((9000.0, 18000.0)):
        text = sglang(1, 1, num_running_reqs=3.0, num_queue_reqs=2.0, prompt_tokens_total=tokens, cached_tokens_total=0.0)
        busy = meter.read(text, 3.0 + number)
    assert busy.prefill_tokens_per_s == 9000, "requests waited all the time"


def test_how_much_of_a_prompt_is_not_in_the_cache() -> None:
    meter = LoadMeter()
    counted = {"prompt_tokens_total": 0, "prefix_cache_hits_total": 0, "request_prompt_tokens_count": 10, "request_prompt_tokens_sum": 1000}
    assert meter.read(vllm(**counted), 1.0).uncached_tokens_mean is None
    # 100 tokens a prompt, three quarters of them from the cache; then half of them, which counts for 0.3.
    counted |= {"prompt_tokens_total": 400, "prefix_cache_hits_total": 300}
    assert meter.read(vllm(**counted), 2.0).uncached_tokens_mean == pytest.approx(25)
    counted |= {"prompt_tokens_total": 600, "prefix_cache_hits_total": 400}
    assert meter.read(vllm(**counted), 3.0).uncached_tokens_mean == pytest.approx(100 * (0.25 + 0.3 * 0.25))


def test_how_fast_it_computes_prompts_by_what_it_did_between_two_looks() -> None:
    meter = LoadMeter()
    meter.read(vllm(prompt_tokens_total=1000, prefix_cache_hits_total=400), 1.0)
    # 5,000 tokens more, 2,000 of them from the cache, in two seconds.
    assert meter.read(vllm(prompt_tokens_total=6000, prefix_cache_hits_total=2400), 3.0).prefill_tokens_per_s == 1500


def test_what_requests_took_counts_and_not_what_was_computed_meanwhile() -> None:
    """An engine counts a prompt when all of it is computed: 8,000 tokens in a second may be the work of eight."""
    meter = LoadMeter()
    names = {"prompt_tokens_total", "prefix_cache_hits_total", "request_prefill_kv_computed_tokens_sum", "request_prefill_time_seconds_sum"}
    meter.read(vllm(**dict.fromkeys(names, 0.0)), 1.0)
    both = {
        "prompt_tokens_total": 8000,
        "prefix_cache_hits_total": 0,
        "request_prefill_kv_computed_tokens_sum": 8000,
        "request_prefill_time_seconds_sum": 8,
    }
    assert meter.read(vllm(**both), 2.0).prefill_tokens_per_s == 1000


def test_a_new_process_counts_from_zero() -> None:
    meter = LoadMeter()
    meter.read(vllm(prompt_tokens_total=0, prefix_cache_hits_total=0, request_prompt_tokens_count=10, request_prompt_tokens_sum=1000), 1.0)
    meter.read(vllm(prompt_tokens_total=2000, prefix_cache_hits_total=0, request_prompt_tokens_count=12, request_prompt_tokens_sum=3000), 2.0)
    again = meter.read(vllm(prompt_tokens_total=500, prefix_cache_hits_total=0, request_prompt_tokens_count=1, request_prompt_tokens_sum=500), 3.0)
    # What was known of the pod stays, and no rate is made of the step back: 1,000 tokens a prompt after 100, then the only one of 500.
    assert again.prefill_tokens_per_s == 2000
    assert again.prompt_tokens_mean == pytest.approx(100 + 0.3 * 900 + 0.3 * (500 - 370))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>not found</html>",
        "vllm:num_requests_running 1.0\n",
        "vllm:num_requests_running one\nvllm:num_requests_waiting 0.0\n",
        "vllm:num_requests_running NaN\nvllm:num_requests_waiting -1.0\n",
        "vllm:num_requests_running +Inf\nvllm:num_requests_waiting +Inf\n",
        'vllm:num_requests_running{engine="0 1.0\nvllm:num_requests_waiting 0.0\n',
        "envoy_cluster_upstream_rq_active 3\n",
    ],
)
def test_what_tells_of_no_load_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, it is shown in the log
        LoadMeter().read(text, 1.0)


def test_a_cache_is_never_more_than_full() -> None:
    assert LoadMeter().read(vllm(usage=1.5), 1.0).kv_usage == 1


def sglang(dp: int, tp: int, **series: float) -> str:
    """With --enable-metrics-for-all-schedulers: every rank reports."""
    lines = [
        f'sglang:{name}{{dp_rank="{d}",engine_type="unified",model_name="m",moe_ep_rank="{t}",pid="{100 + t}",pp_rank="0",tp_rank="{t}"}} {value}\n'
        for d in range(dp)
        for t in range(tp)
        for name, value in series.items()
    ]
    return "".join(lines)


@pytest.mark.parametrize(
    ("dp", "tp", "load"),
    [
        (1, 8, Load(3, 2, 0.5, kv_tokens=1000.0)),
        (4, 1, Load(12, 8, 0.5, kv_tokens=4000.0)),
        (4, 2, Load(12, 8, 0.5, kv_tokens=4000.0)),
    ],
)
def test_ranks_of_one_scheduler_count_once(dp: int, tp: int, load: Load) -> None:
    text = sglang(dp, tp, num_running_reqs=3.0, num_queue_reqs=2.0, token_usage=0.5, max_total_num_tokens=1000.0)
    assert LoadMeter().read(text, 1.0) == load


def test_the_counters_of_ranks_of_one_scheduler_count_once() -> None:
    """2,000 tokens by two ranks of one scheduler, in one second."""
    meter = LoadMeter()
    queue = {"num_running_reqs": 1.0, "num_queue_reqs": 1.0}
    meter.read(sglang(1, 2, **queue, prompt_tokens_total=0.0, cached_tokens_total=0.0), 1.0)
    assert meter.read(sglang(1, 2, **queue, prompt_tokens_total=2000.0, cached_tokens_total=0.0), 2.0).prefill_tokens_per_s == 2000


def test_tensorrt_llm() -> None:
    series = {"num_requests_running": 5, "num_requests_waiting": 4, "kv_cache_utilization": 0.75, "kv_cache_max_blocks": 100}
    series |= {"kv_cache_tokens_per_block": 32, "prompt_tokens_total": 900, "request_success_total": 3}
    text = "".join(f'trtllm_{name}{{engine_type="trtllm",model_name="m"}} {value}.0\n' for name, value in series.items() if value >= 1)
    text += 'trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m"} 0.75\n'
    assert LoadMeter().read(text, 1.0) == Load(5, 4, 0.75, 300.0, kv_tokens=3200.0, requests=3 + 5 + 4)
    assert LoadMeter().read(text.replace("trtllm_", "trtllm:"), 1.0) == Load(5, 4, 0.75, 300.0, kv_tokens=3200.0, requests=3 + 5 + 4)


def test_names_that_an_exporter_wrote_without_a_colon() -> None:
    assert LoadMeter().read(vllm().replace("vllm:", "vllm_"), 1.0) == Load(3, 2, 0.25)
    assert LoadMeter().read("sglang_num_running_reqs 1.0\nsglang_num_queue_reqs 2.0\n", 1.0) == Load(1, 2)


def test_requests_that_wait_for_different_reasons_are_added() -> None:
    reasons = "".join(
        f'vllm:num_requests_waiting_by_reason{{engine="0",reason="{reason}"}} {count}.0\n' for reason, count in (("capacity", 3), ("deferred", 4))
    )
    assert LoadMeter().read('vllm:num_requests_running{engine="0"} 1.0\n' + reasons, 1.0) == Load(1, 7)


def test_newer_vllm_counts_cached_tokens_without_those_of_requests_that_wait() -> None:
    """prefix_cache_hits counts a waiting request in every step: here five times."""
    meter = LoadMeter()
    meter.read(vllm(prompt_tokens_total=0, prompt_tokens_cached_total=0, prefix_cache_hits_total=0), 1.0)
    load = meter.read(vllm(prompt_tokens_total=6000, prompt_tokens_cached_total=1000, prefix_cache_hits_total=5000), 2.0)
    assert load.prefill_tokens_per_s == 5000
