from __future__ import annotations

import json
from typing import Any

import pytest

from gpuward_executors.backends.vllm.embeddings import FAMILY
from gpuward_executors.backends.vllm.family import Context, parse_payload
from gpuward_executors.errors import EngineFailed, JobRefused

CONTEXT = Context("cfg", FAMILY.task, "served", "2026-01-02T03:04:05.000006")


def request(payload: bytes) -> dict[str, Any]:
    made = json.loads(FAMILY.request(parse_payload(payload), "served"))
    assert isinstance(made, dict)
    return made


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (b'"a"', ["a"]),
        (b'["a","b"]', ["a", "b"]),
        (b"[1,2]", [1, 2]),
        (b"[[1],[2]]", [[1], [2]]),
        (b"7", [7]),
    ],
)
def test_a_single_input_becomes_a_list(given: bytes, sent: list[object]) -> None:
    assert request(b'{"task":"openai/embeddings","model":"asked","input":' + given + b"}") == {
        "model": "served",
        "input": sent,
    }


def test_every_other_field_reaches_the_engine() -> None:
    made = request(b'{"input":"a","encoding_format":"base64","dimensions":8,"user":"u"}')
    assert made == {
        "model": "served",
        "input": ["a"],
        "encoding_format": "base64",
        "dimensions": 8,
        "user": "u",
    }


@pytest.mark.parametrize("value", [b"null", b'""', b"[]", b"[ ]", b"false"])
def test_an_empty_input_is_refused_in_the_words_of_the_protocol(value: bytes) -> None:
    with pytest.raises(JobRefused, match=r"^No input provided in payload$"):
        request(b'{"input":' + value + b"}")


def test_a_missing_input_is_refused() -> None:
    with pytest.raises(JobRefused, match=r"^No input provided in payload$"):
        request(b"{}")


@pytest.mark.parametrize("vector", ["[0.1,-2e-05,3]", '"AACAPw=="'])
def test_a_result_has_the_form_of_the_protocol_and_the_engines_own_digits(vector: str) -> None:
    answer = f'{{"object":"list","data":[{{"object":"embedding","index":0,"embedding":{vector}}}],'
    answer += '"usage":{"prompt_tokens":4,"total_tokens":4}}'
    made = FAMILY.result(answer.encode(), CONTEXT)
    assert vector in made.decode()
    assert json.loads(made) == {
        "status": "success",
        "config_id": "cfg",
        "task": "openai/embeddings",
        "embeddings": [{"index": 0, "embedding": json.loads(vector)}],
        "prompt_tokens": 4,
        "total_tokens": 4,
        "processed_at": "2026-01-02T03:04:05.000006",
    }


def test_a_missing_usage_counts_as_zero() -> None:
    made = json.loads(FAMILY.result(b'{"data":[{"embedding":[1]}]}', CONTEXT))
    assert (made["prompt_tokens"], made["total_tokens"]) == (0, 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"nothing",
        b"{}",
        b'{"data":[]}',
        b'{"data":[{"index":0}]}',
        b'{"data":[{"embedding":null}]}',
        b'{"error":"x"}',
    ],
)
def test_an_answer_without_embeddings_is_the_engines_fault(answer: bytes) -> None:
    with pytest.raises(EngineFailed):
        FAMILY.result(answer, CONTEXT)
