"""Text completions over the wire."""

from __future__ import annotations

import msgspec
import pytest

from support.simulated_engine import SimulatedEngine, events

PATH = "/v1/completions"


def test_the_answer_echoes_the_prompt(engine: SimulatedEngine) -> None:
    status, answer = engine.post(PATH, {"prompt": "job 18", "model": "default"})
    assert status == 200
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == "sim:job 18"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(("prompt", "text"), [(["a", "b"], "sim:a b"), ([1, 2, 3], "sim:1 2 3")])
def test_lists_are_one_prompt(engine: SimulatedEngine, prompt: list[object], text: str) -> None:
    _, answer = engine.post(PATH, {"prompt": prompt})
    assert answer["choices"][0]["text"] == text


def test_without_a_limit_there_are_sixteen_tokens(engine: SimulatedEngine) -> None:
    _, answer = engine.post(PATH, {"prompt": "a " * 40})
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_stream_is_the_same_answer_in_pieces(engine: SimulatedEngine) -> None:
    body = {"prompt": "a b c", "stream": True, "stream_options": {"include_usage": True}}
    _, raw = engine.request("POST", PATH, body)
    *chunks, done = events(raw)
    assert done == "[DONE]"
    *parts, usage = (msgspec.json.decode(chunk) for chunk in chunks)
    assert "".join(part["choices"][0]["text"] for part in parts) == "sim:a b c"
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"prompt": ""}, 400),
        ({"prompt": "x", "max_tokens": 0}, 400),
        ({"prompt": "x", "model": "y"}, 404),
    ],
)
def test_client_errors(engine: SimulatedEngine, body: object, status: int) -> None:
    got, answer = engine.post(PATH, body)
    assert got == status
    assert answer["error"]["code"] == status
