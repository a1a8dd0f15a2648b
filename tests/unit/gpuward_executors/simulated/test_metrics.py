"""The text of /metrics."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from gpuward_executors.simulated.metrics import Histogram, Metrics

NAMES = """
num_requests_running num_requests_waiting num_requests_waiting_by_reason kv_cache_usage_perc
engine_sleep_state prompt_tokens_total generation_tokens_total request_success_total num_preemptions_total
admission_rejections_total
time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds
e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds
request_prefill_time_seconds request_decode_time_seconds request_prompt_tokens request_generation_tokens
iteration_tokens_total
""".split()


def request(reason: str = "stop", produced: int = 4) -> SimpleNamespace:
    return SimpleNamespace(
        finish_reason=reason, prompt_tokens=10, produced=produced, arrived_s=1.0, first_s=1.5, last_s=3.0
    )


def value(text: str, start: str) -> float:
    match = re.search(rf"^{re.escape(start)} (\S+)$", text, re.MULTILINE)
    assert match, f"{start} not in:\n{text}"
    return float(match[1])


def test_every_name_of_vllm_is_declared_once() -> None:
    declared = re.findall(
        r"^# TYPE vllm:(\S+) (?:gauge|counter|histogram)$", Metrics("m", 1).render(), re.MULTILINE
    )
    assert sorted(declared) == sorted(NAMES)


def test_each_line_is_prometheus_text() -> None:
    for line in Metrics('a"b\\c\nd', 1).render().splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) .*|vllm:\w+\{(\w+="([^"\\\n]|\\.)*",?)+\} \S+', line), line


def test_gauges_show_the_last_step() -> None:
    metrics = Metrics("m", slots=4)
    metrics.step(running=2, waiting=3, prompt_tokens=0, generation_tokens=0)
    text = metrics.render()
    labels = 'engine="0",model_name="m"'
    assert value(text, f"vllm:num_requests_running{{{labels}}}") == 2
    assert value(text, f"vllm:num_requests_waiting{{{labels}}}") == 3
    assert value(text, f'vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}}') == 3
    assert value(text, f"vllm:kv_cache_usage_perc{{{labels}}}") == 0.5
    assert value(text, f"vllm:iteration_tokens_total_count{{{labels}}}") == 0


def test_counters_add_up() -> None:
    metrics = Metrics("m", 1)
    metrics.step(1, 0, 10, 1)
    metrics.step(1, 0, 0, 3)
    text = metrics.render()
    labels = 'engine="0",model_name="m"'
    assert value(text, f"vllm:prompt_tokens_total{{{labels}}}") == 10
    assert value(text, f"vllm:generation_tokens_total{{{labels}}}") == 4
    assert value(text, f"vllm:iteration_tokens_total_count{{{labels}}}") == 2
    assert value(text, f"vllm:iteration_tokens_total_sum{{{labels}}}") == 14


@pytest.mark.parametrize("reason", ["stop", "length", "abort"])
def test_finished_requests_are_counted_by_reason(reason: str) -> None:
    metrics = Metrics("m", 1)
    metrics.finished(request(reason))
    text = metrics.render()
    labels = 'engine="0",model_name="m"'
    for other in ("stop", "length", "abort"):
        start = f'vllm:request_success_total{{{labels},finished_reason="{other}"}}'
        assert value(text, start) == (1 if other == reason else 0)


def test_times_of_a_request() -> None:
    metrics = Metrics("m", 1)
    metrics.finished(request())
    text = metrics.render()
    labels = 'engine="0",model_name="m"'
    assert value(text, f"vllm:time_to_first_token_seconds_sum{{{labels}}}") == 0.5
    assert value(text, f"vllm:e2e_request_latency_seconds_sum{{{labels}}}") == 2.0
    assert value(text, f"vllm:request_time_per_output_token_seconds_sum{{{labels}}}") == 0.5


def test_a_request_without_tokens_has_no_first_token() -> None:
    metrics = Metrics("m", 1)
    metrics.finished(request(produced=0))
    assert value(metrics.render(), 'vllm:time_to_first_token_seconds_count{engine="0",model_name="m"}') == 0


def test_buckets_of_a_histogram_are_cumulative() -> None:
    histogram = Histogram((1.0, 2.0))
    for number in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(number)
    assert list(histogram.lines("h", 'a="b"')) == [
        'h_bucket{a="b",le="1.0"} 2.0',
        'h_bucket{a="b",le="2.0"} 3.0',
        'h_bucket{a="b",le="+Inf"} 4.0',
        'h_count{a="b"} 4.0',
        'h_sum{a="b"} 12.0',
    ]
