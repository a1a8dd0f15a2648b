"""Embeddings over the wire."""

from __future__ import annotations

import base64

import pytest

from gpuward_executors.simulated.answers import embed, floats
from support.simulated_engine import SimulatedEngine

PATH = "/v1/embeddings"


def test_each_input_has_its_vector(engine: SimulatedEngine) -> None:
    status, answer = engine.post(PATH, {"input": ["a", "b"], "model": "default"})
    assert status == 200
    assert answer["object"] == "list"
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert [item["embedding"] for item in answer["data"]] == [floats(embed("a", 64)), floats(embed("b", 64))]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == 2


def test_base64_holds_the_same_numbers(engine: SimulatedEngine) -> None:
    body = {"input": "a text", "dimensions": 5}
    _, numbers = engine.post(PATH, body)
    _, encoded = engine.post(PATH, {**body, "encoding_format": "base64"})
    assert len(numbers["data"][0]["embedding"]) == 5
    assert floats(base64.b64decode(encoded["data"][0]["embedding"])) == numbers["data"][0]["embedding"]


@pytest.mark.parametrize(("tokens", "vectors"), [([1, 2, 3], 1), ([[1, 2], [3]], 2), (["a", "b", "c"], 3)])
def test_inputs_may_be_tokens(engine: SimulatedEngine, tokens: list[object], vectors: int) -> None:
    _, answer = engine.post(PATH, {"input": tokens})
    assert len(answer["data"]) == vectors


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({}, 400, "input"),
        ({"input": []}, 400, "at least one text"),
        ({"input": ["a", ""]}, 400, "no empty one"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "x" * 4000}, 400, "maximum context length"),
        ({"input": "a", "model": "nope"}, 404, "does not exist"),
    ],
)
def test_client_errors(engine: SimulatedEngine, body: object, status: int, part: str) -> None:
    got, answer = engine.post(PATH, body)
    assert got == status
    assert part in answer["error"]["message"]
