"""Knows the engine's Prometheus metrics: vLLM's names, labels and text, fed by the API process."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Protocol

_SECONDS = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
_LONG_SECONDS = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)
_TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0)
_ITERATION_TOKENS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)

_FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")

#: Histogram name → (bucket bounds, help text).
_HISTOGRAMS: dict[str, tuple[Sequence[float], str]] = {
    "iteration_tokens_total": (_ITERATION_TOKENS, "Histogram of number of tokens per engine_step."),
    "time_to_first_token_seconds": (_SECONDS, "Histogram of time to first token in seconds."),
    "inter_token_latency_seconds": (_SECONDS, "Histogram of inter-token latency in seconds."),
    "request_time_per_output_token_seconds": (_SECONDS, "Histogram of time per output token per request."),
    "e2e_request_latency_seconds": (_LONG_SECONDS, "Histogram of e2e request latency in seconds."),
    "request_inference_time_seconds": (
        _LONG_SECONDS,
        "Histogram of time spent in RUNNING phase for request.",
    ),
    "request_prefill_time_seconds": (_LONG_SECONDS, "Histogram of time spent in PREFILL phase for request."),
    "request_decode_time_seconds": (_LONG_SECONDS, "Histogram of time spent in DECODE phase for request."),
    "request_queue_time_seconds": (_LONG_SECONDS, "Histogram of time spent in WAITING phase for request."),
    "request_prompt_tokens": (_TOKENS, "Number of prefill tokens processed."),
    "request_generation_tokens": (_TOKENS, "Number of generation tokens processed."),
}


class Histogram:
    """Counts per bucket.

    Args:
        bounds: Upper bounds, rising.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Yield the text lines of this histogram."""
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            text = "+Inf" if bound == float("inf") else repr(float(bound))
            yield f'{name}_bucket{{{labels},le="{text}"}} {float(total)}'
        yield f"{name}_count{{{labels}}} {float(total)}"
        yield f"{name}_sum{{{labels}}} {self._sum}"


class FinishedRequest(Protocol):
    """What the metrics want to know of a request that ended."""

    finish_reason: str
    prompt_tokens: int
    produced: int
    arrived_s: float
    first_s: float
    last_s: float


class Metrics:
    """All counters, gauges and histograms of one engine.

    Args:
        model_name: Value of the label `model_name`.
        slots: Requests that fill the engine; the base of the cache usage.
    """

    def __init__(self, model_name: str, slots: int) -> None:
        escaped = model_name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._labels = f'engine="0",model_name="{escaped}"'
        self._slots = slots
        self.running = 0
        self.waiting = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.rejections = 0
        self._finished = dict.fromkeys(_FINISH_REASONS, 0)
        self._histograms = {name: Histogram(bounds) for name, (bounds, _) in _HISTOGRAMS.items()}

    def step(self, running: int, waiting: int, prompt_tokens: int, generation_tokens: int) -> None:
        """Note one engine step: the counts it reported, the tokens it read and made."""
        self.running = running
        self.waiting = waiting
        tokens = prompt_tokens + generation_tokens
        if tokens:
            self.prompt_tokens += prompt_tokens
            self.generation_tokens += generation_tokens
            self._histograms["iteration_tokens_total"].observe(tokens)

    def inter_token(self, latency_s: float) -> None:
        """Note the time between two outputs of a request."""
        self._histograms["inter_token_latency_seconds"].observe(latency_s)

    def finished(self, request: FinishedRequest) -> None:
        """Note a request that the engine ended."""
        self._finished[request.finish_reason] += 1
        total_s = request.last_s - request.arrived_s
        decode_s = request.last_s - request.first_s
        histograms = self._histograms
        histograms["e2e_request_latency_seconds"].observe(total_s)
        histograms["request_inference_time_seconds"].observe(total_s)
        histograms["request_decode_time_seconds"].observe(decode_s)
        histograms["request_prompt_tokens"].observe(request.prompt_tokens)
        histograms["request_generation_tokens"].observe(request.produced)
        if request.produced:
            first_s = request.first_s - request.arrived_s
            histograms["time_to_first_token_seconds"].observe(first_s)
            histograms["request_prefill_time_seconds"].observe(first_s)
            # The API process cannot see when a slot came free: the wait is inside the time to first token.
            histograms["request_queue_time_seconds"].observe(0.0)
        if request.produced > 1:
            histograms["request_time_per_output_token_seconds"].observe(decode_s / (request.produced - 1))

    def render(self) -> str:
        """Return the text of `/metrics`."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        labels = self._labels
        usage = min(1.0, self.running / self._slots)
        yield from _family("num_requests_running", "gauge", "Number of requests in model execution batches.")
        yield f"vllm:num_requests_running{{{labels}}} {float(self.running)}"
        yield from _family("num_requests_waiting", "gauge", "Number of requests waiting to be processed.")
        yield f"vllm:num_requests_waiting{{{labels}}} {float(self.waiting)}"
        yield from _family("num_requests_waiting_by_reason", "gauge", "Number of waiting requests by reason.")
        for reason, count in (("capacity", self.waiting), ("deferred", 0)):
            yield f'vllm:num_requests_waiting_by_reason{{{labels},reason="{reason}"}} {float(count)}'
        yield from _family("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.")
        yield f"vllm:kv_cache_usage_perc{{{labels}}} {usage}"
        yield from _family("engine_sleep_state", "gauge", "Engine sleep state.")
        for state, value in (("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)):
            yield f'vllm:engine_sleep_state{{{labels},sleep_state="{state}"}} {value}'
        yield from _family("prompt_tokens", "counter", "Number of prefill tokens processed.")
        yield f"vllm:prompt_tokens_total{{{labels}}} {float(self.prompt_tokens)}"
        yield from _family("generation_tokens", "counter", "Number of generation tokens processed.")
        yield f"vllm:generation_tokens_total{{{labels}}} {float(self.generation_tokens)}"
        yield from _family("num_preemptions", "counter", "Cumulative number of preemption from the engine.")
        yield f"vllm:num_preemptions_total{{{labels}}} 0.0"
        yield from _family(
            "admission_rejections", "counter", "Requests refused before they reached the engine."
        )
        reason = "max_num_queued_reqs"
        yield f'vllm:admission_rejections_total{{{labels},reason="{reason}"}} {float(self.rejections)}'
        yield from _family("request_success", "counter", "Count of successfully processed requests.")
        for reason, count in self._finished.items():
            yield f'vllm:request_success_total{{{labels},finished_reason="{reason}"}} {float(count)}'
        for name, (_, text) in _HISTOGRAMS.items():
            yield from _family(name, "histogram", text)
            yield from self._histograms[name].lines(f"vllm:{name}", labels)


def _family(name: str, kind: str, text: str) -> Iterator[str]:
    # Prometheus' own client names a counter's family without `_total` only in its newer format.
    shown = f"vllm:{name}_total" if kind == "counter" else f"vllm:{name}"
    yield f"# HELP {shown} {text}"
    yield f"# TYPE {shown} {kind}"
