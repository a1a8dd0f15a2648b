"""The API process: small routes, what happens in the engine, and every way to end."""

from __future__ import annotations

import http.client
import os
import signal
import socket
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest

from support.simulated_engine import PATIENCE_S, SimulatedEngine, chat_body, events, is_alive, wait_until

CHAT = "/v1/chat/completions"
LONG = {"max_tokens": 30000, "ignore_eos": True}
#: About ten minutes of tokens.
SLOW_TOKENS = ("--token-s", "0.02")


def start_two_requests(engine: SimulatedEngine) -> tuple[Future[Any], Future[Any]]:
    """Put one plain and one streamed request in flight."""
    plain = engine.in_background(engine.request, "POST", CHAT, chat_body("plain", **LONG))
    stream = engine.in_background(engine.request, "POST", CHAT, chat_body("stream", stream=True, **LONG))
    wait_until(lambda: engine.metric("vllm:num_requests_running") == 2, "two requests run")
    return plain, stream


def test_health_is_an_empty_200(engine: SimulatedEngine) -> None:
    assert engine.get("/health") == (200, b"")
    assert engine.get("/ping") == (200, b"")


def test_models_lists_every_served_name(engine: SimulatedEngine) -> None:
    status, body = engine.get("/v1/models")
    models = msgspec.json.decode(body)
    assert status == 200
    assert [model["id"] for model in models["data"]] == ["default", "alias"]
    assert {model["root"] for model in models["data"]} == {"tiny-model"}
    assert {model["max_model_len"] for model in models["data"]} == {512}


def test_version_says_that_it_is_simulated(engine: SimulatedEngine) -> None:
    assert msgspec.json.decode(engine.get("/version")[1])["version"].endswith("+simulated")


def test_load_of_an_idle_engine(engine: SimulatedEngine) -> None:
    assert msgspec.json.decode(engine.get("/load")[1]) == {"server_load": 0}


@pytest.mark.parametrize(("method", "path"), [("GET", "/nope"), ("GET", CHAT), ("POST", "/health")])
def test_unknown_routes_are_404_in_json(engine: SimulatedEngine, method: str, path: str) -> None:
    status, body = engine.request(method, path)
    assert (status, msgspec.json.decode(body)) == (404, {"detail": "Not Found"})


def test_metrics_move_with_requests(engine: SimulatedEngine) -> None:
    made = engine.metric("vllm:generation_tokens_total")
    finished = engine.metric("vllm:e2e_request_latency_seconds_count")
    engine.chat("three little words")
    assert engine.metric("vllm:generation_tokens_total") == made + 3
    assert engine.metric("vllm:e2e_request_latency_seconds_count") == finished + 1
    assert engine.metric("vllm:num_requests_running") == 0


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_leaves_takes_its_request_along(engine: SimulatedEngine, streamed: bool) -> None:
    body = chat_body("x", stream=streamed, max_tokens=500, ignore_eos=True)
    slow = {**body, "gpuward_fault": "slow:100000"}
    with engine.open_request(CHAT, slow):
        wait_until(lambda: engine.metric("vllm:num_requests_running") == 1, "the request runs")
    wait_until(lambda: engine.metric("vllm:num_requests_running") == 0, "the request was aborted")


def test_requests_beyond_the_slots_wait(engine: SimulatedEngine) -> None:
    body = {**chat_body("x", max_tokens=500, ignore_eos=True), "gpuward_fault": "slow:100000"}
    with engine.open_request(CHAT, body), engine.open_request(CHAT, body), engine.open_request(CHAT, body):
        wait_until(lambda: engine.metric("vllm:num_requests_waiting") == 1, "one of three waits")
        assert engine.metric("vllm:num_requests_running") == 2
    wait_until(lambda: engine.metric("vllm:num_requests_running") == 0, "all were aborted")


@pytest.mark.parametrize("body", [b"{", {"kind": "nope"}, {}, {"kind": "big"}])
def test_a_malformed_order_for_a_fault_is_refused(engine: SimulatedEngine, body: object) -> None:
    assert engine.post("/fault", body)[0] == 400


def test_an_armed_fault_meets_the_request_whose_turn_it_is(engine: SimulatedEngine) -> None:
    assert engine.post("/fault", {"kind": "error500", "after_requests": 1})[0] == 200
    assert [engine.chat("x")[0] for _ in range(3)] == [200, 500, 200]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_an_engine_childs_death_fails_its_requests_and_ends_in_exit_code_0(number: signal.Signals) -> None:
    flags = ("--death-linger-s", str(PATIENCE_S), "--workers", "1")
    with SimulatedEngine(*SLOW_TOKENS, *flags) as engine:
        plain, stream = start_two_requests(engine)
        os.kill(engine.child(), number)
        status, body = plain.result(PATIENCE_S)
        error = msgspec.json.decode(body)["error"]
        assert (status, error["type"]) == (500, "InternalServerError")
        assert error["message"].startswith("EngineCore encountered an issue")
        status, body = stream.result(PATIENCE_S)
        *_, last, done = events(body)
        assert (status, done) == (200, "[DONE]")
        assert msgspec.json.decode(last) == {"error": error}
        assert engine.get("/health")[0] == 503
        assert engine.get("/v1/models")[0] == 200
        assert engine.chat("late")[0] == 500
        # The test has seen enough of the 503: a signal ends the wait.
        os.kill(engine.pid, signal.SIGTERM)
        assert engine.wait() == 0
    assert "INFO:     Shutting down" in engine.lines
    assert any("AsyncLLM output_handler failed." in line for line in engine.lines)


@pytest.mark.slow
def test_without_any_signal_a_dead_engine_exits_0() -> None:
    with SimulatedEngine("--allow-faults", "--access-log") as engine:
        assert engine.chat("FAULT:oom")[0] == 500
        assert engine.wait() == 0
        engine.wait_for_line(r"torch\.OutOfMemoryError: CUDA out of memory")
        engine.wait_for_line(r'INFO: +127\.0\.0\.1:\d+ - "POST /v1/chat/completions HTTP/1\.1" 500 Internal')


@pytest.mark.slow
def test_sigterm_to_the_engine_child_alone_aborts_answers_and_exits_0() -> None:
    with SimulatedEngine(*SLOW_TOKENS) as engine:
        plain, stream = start_two_requests(engine)
        os.kill(engine.child(), signal.SIGTERM)
        status, body = plain.result(PATIENCE_S)
        assert (status, msgspec.json.decode(body)["choices"][0]["finish_reason"]) == (200, "abort")
        assert '"finish_reason":"abort"' in events(stream.result(PATIENCE_S)[1])[-2]
        assert engine.wait() == 0


@pytest.mark.slow
def test_an_engine_told_to_stay_stays_dead_until_sigterm() -> None:
    with SimulatedEngine("--allow-faults", environment={"VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1"}) as engine:
        assert engine.post("/fault", {"kind": "kill"}) == (200, {"armed": "kill", "after_requests": None})
        engine.wait_for_line("engine core exited unexpectedly")
        assert engine.get("/health")[0] == 503
        assert engine.get("/metrics")[0] == 200
        assert engine.chat("x")[0] == 500
        os.kill(engine.pid, signal.SIGTERM)
        assert engine.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "oom"])
def test_a_death_before_it_is_ready_is_exit_code_1(fault: str) -> None:
    with SimulatedEngine("--fault", f"{fault}:start", ready=False) as engine:
        assert engine.wait() == 1
        failed = {"kill": "-9", "oom": "1"}[fault]
        engine.wait_for_line(
            rf"^RuntimeError: Engine core initialization failed.*\{{'EngineCore': {failed}\}}"
        )


@pytest.mark.slow
def test_a_killed_api_process_orphans_its_engine() -> None:
    with SimulatedEngine(*SLOW_TOKENS, "--workers", "1") as engine:
        plain, stream = start_two_requests(engine)
        child = engine.child()
        worker = engine.child("SIM::Worker")
        os.kill(engine.pid, signal.SIGKILL)
        assert engine.wait() == -signal.SIGKILL
        for future in (plain, stream):
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                future.result(PATIENCE_S)
        os.kill(child, signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", engine.port), timeout=PATIENCE_S)
        assert is_alive(child)
        assert is_alive(worker)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_engine_stops_cleanly(number: signal.Signals) -> None:
    with SimulatedEngine() as engine:
        assert engine.chat("x")[0] == 200
        os.kill(engine.pid, number)
        assert engine.wait() == 0
        assert engine.processes() == []
        engine.wait_for_line("Application shutdown complete")
        assert not any("unexpectedly" in line or "force" in line for line in engine.lines)


@pytest.mark.slow
def test_a_busy_engine_answers_abort_and_stops() -> None:
    with SimulatedEngine(*SLOW_TOKENS) as engine:
        plain, stream = start_two_requests(engine)
        os.kill(engine.pid, signal.SIGTERM)
        status, body = plain.result(PATIENCE_S)
        assert (status, msgspec.json.decode(body)["choices"][0]["finish_reason"]) == (200, "abort")
        assert events(stream.result(PATIENCE_S)[1])[-1] == "[DONE]"
        assert engine.wait() == 0
        assert engine.processes() == []


@pytest.mark.slow
def test_a_busy_engine_may_fail_its_requests_and_stop() -> None:
    with SimulatedEngine(*SLOW_TOKENS, "--term-behaviour", "abort") as engine:
        plain, stream = start_two_requests(engine)
        os.kill(engine.pid, signal.SIGTERM)
        assert plain.result(PATIENCE_S)[0] == 500
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            stream.result(PATIENCE_S)
        assert engine.wait() == 0


@pytest.mark.slow
def test_a_busy_engine_may_hang_until_it_is_killed() -> None:
    with SimulatedEngine(*SLOW_TOKENS, "--term-behaviour", "hang") as engine:
        plain, _ = start_two_requests(engine)
        os.kill(engine.pid, signal.SIGTERM)
        engine.wait_for_line("Waiting for connections to close")
        wait_until(lambda: not engine.processes("SIM::EngineCore"), "the engine child is killed")
        with pytest.raises(ConnectionRefusedError):
            engine.get("/health")
        os.kill(engine.pid, signal.SIGTERM)
        assert not plain.done()
        assert is_alive(engine.pid)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "stop"])
def test_a_frozen_engine_looks_healthy_and_makes_no_tokens(fault: str) -> None:
    with SimulatedEngine("--allow-faults", *SLOW_TOKENS) as engine:
        neighbour = engine.in_background(engine.chat, "neighbour", **LONG)
        wait_until(lambda: engine.metric("vllm:generation_tokens_total") > 0, "tokens are made")
        frozen = engine.in_background(engine.chat, f"FAULT:{fault}")
        wait_until(lambda: engine.metric("vllm:num_requests_running") == 2, "both run")
        made = engine.metric("vllm:generation_tokens_total")
        for path in ("/health", "/ping", "/v1/models", "/load"):
            assert engine.get(path)[0] == 200
        assert engine.metric("vllm:generation_tokens_total") == made
        assert engine.metric("vllm:num_requests_running") == 2
        assert not neighbour.done()
        assert not frozen.done()


@pytest.mark.slow
def test_a_frozen_engine_with_requests_hangs_on_sigterm() -> None:
    with SimulatedEngine("--allow-faults") as engine:
        frozen = engine.in_background(engine.chat, "FAULT:hang")
        wait_until(lambda: engine.metric("vllm:num_requests_running") == 1, "it runs")
        os.kill(engine.pid, signal.SIGTERM)
        engine.wait_for_line("Waiting for connections to close")
        assert not frozen.done()
        assert is_alive(engine.pid)


@pytest.mark.slow
def test_a_fault_may_come_by_the_clock() -> None:
    with SimulatedEngine("--fault", "exit0:0.05s") as engine:
        assert engine.wait() == 0
        engine.wait_for_line("engine core exited unexpectedly")


@pytest.mark.slow
def test_a_full_engine_is_busy() -> None:
    flags = ("--max-num-seqs", "1", "--max-num-queued-reqs", "2")
    with SimulatedEngine(*SLOW_TOKENS, *flags) as engine:
        for _ in range(2):
            engine.in_background(engine.chat, "x", **LONG)
        wait_until(lambda: engine.metric("vllm:num_requests_waiting") == 1, "one runs, one waits")
        status, answer = engine.chat("x")
        assert (status, answer["error"]["type"]) == (503, "Service Unavailable")
        assert engine.metric("vllm:admission_rejections_total") == 1
