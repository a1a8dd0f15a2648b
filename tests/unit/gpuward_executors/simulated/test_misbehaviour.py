"""Faults of answers, over the wire, asked for by the request."""

from __future__ import annotations

import http.client
import signal

import msgspec
import pytest

from support.simulated_engine import SimulatedEngine, chat_body, events

CHAT = "/v1/chat/completions"
BODIES = {
    CHAT: chat_body("one two three four"),
    "/v1/completions": {"prompt": "one two three four"},
    "/v1/embeddings": {"input": "one two three four"},
}


def ask(engine: SimulatedEngine, path: str, fault: str) -> tuple[int, bytes]:
    return engine.request("POST", path, {**BODIES[path], "gpuward_fault": fault})


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("fault", "status"), [("error500", 500), ("busy503", 503)])
def test_errors_of_a_healthy_engine(engine: SimulatedEngine, path: str, fault: str, status: int) -> None:
    got, body = ask(engine, path, fault)
    assert got == status
    assert msgspec.json.decode(body)["error"]["code"] == status
    assert engine.get("/health")[0] == 200


@pytest.mark.parametrize("path", BODIES)
def test_a_dropped_request_has_no_answer(engine: SimulatedEngine, path: str) -> None:
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        ask(engine, path, "drop")


@pytest.mark.parametrize("path", BODIES)
def test_garbage_that_is_no_json(engine: SimulatedEngine, path: str) -> None:
    status, body = ask(engine, path, "garbage:text")
    assert status == 200
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(body)


@pytest.mark.parametrize("path", BODIES)
def test_garbage_of_another_shape(engine: SimulatedEngine, path: str) -> None:
    status, body = ask(engine, path, "garbage:shape")
    assert status == 200
    assert not isinstance(msgspec.json.decode(body)["choices"], list)


@pytest.mark.parametrize("path", BODIES)
def test_garbage_that_stops_in_the_middle(engine: SimulatedEngine, path: str) -> None:
    status, body = ask(engine, path, "garbage:truncated")
    assert status == 200
    with pytest.raises(msgspec.DecodeError, match="truncated"):
        msgspec.json.decode(body)


@pytest.mark.parametrize("path", BODIES)
def test_garbage_on_a_connection_that_is_cut(engine: SimulatedEngine, path: str) -> None:
    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(engine, path, "garbage:cut")
    assert caught.value.partial.startswith(b'{"id"')


def test_garbage_takes_the_place_of_a_stream_too(engine: SimulatedEngine) -> None:
    body = chat_body("a", stream=True, gpuward_fault="garbage:text")
    assert b"It works!" in engine.request("POST", CHAT, body)[1]


def test_an_abort_is_a_200_with_part_of_the_text(engine: SimulatedEngine) -> None:
    status, body = ask(engine, CHAT, "abort-answer")
    assert status == 200
    choice = msgspec.json.decode(body)["choices"][0]
    assert choice["finish_reason"] == "abort"
    assert choice["message"]["content"] == "sim:one two "


@pytest.mark.parametrize("size", [2000, 300_000])
@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
def test_a_big_answer_has_exactly_the_size_asked_for(engine: SimulatedEngine, path: str, size: int) -> None:
    status, body = ask(engine, path, f"big:{size}")
    assert status == 200
    assert len(body) == size
    msgspec.json.decode(body)


def test_a_big_stream_carries_so_many_characters(engine: SimulatedEngine) -> None:
    _, raw = engine.request("POST", CHAT, chat_body("a", stream=True, gpuward_fault="big:5000"))
    *chunks, _ = events(raw)
    parts = [msgspec.json.decode(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(parts) == "x" * 5000


def test_a_message_may_ask_for_a_fault(engine: SimulatedEngine) -> None:
    assert engine.chat("FAULT:error500 please")[0] == 500


def test_a_slow_request_is_answered(engine: SimulatedEngine) -> None:
    status, body = ask(engine, CHAT, "slow:2")
    assert status == 200
    assert msgspec.json.decode(body)["choices"][0]["message"]["content"] == "sim:one two three four"


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "code"), [("segv-api", -signal.SIGSEGV), ("exit1", 1)])
def test_deaths_of_the_api_process(fault: str, code: int) -> None:
    with SimulatedEngine("--allow-faults") as engine:
        child = engine.child()
        with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
            ask(engine, CHAT, fault)
        assert engine.wait() == code
        # A crash orphans the engine child; a process that ends by itself takes it along.
        assert engine.processes("SIM::EngineCore") == ([child] if code < 0 else [])
