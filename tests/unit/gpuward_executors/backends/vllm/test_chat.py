from __future__ import annotations

import json
from typing import Any

import pytest

from gpuward_executors.backends.vllm.chat import FAMILY
from gpuward_executors.backends.vllm.family import Context, parse_payload
from gpuward_executors.errors import EngineFailed, JobRefused

MESSAGES = [{"role": "user", "content": "hi"}]
CONTEXT = Context("cfg", FAMILY.task, "served", "2026-01-02T03:04:05.000006")


def request(payload: dict[str, Any]) -> dict[str, Any]:
    made = json.loads(FAMILY.request(parse_payload(json.dumps(payload).encode()), "served"))
    assert isinstance(made, dict)
    return made


def result(answer: object) -> dict[str, Any]:
    made = json.loads(
        FAMILY.result(answer if isinstance(answer, bytes) else json.dumps(answer).encode(), CONTEXT)
    )
    assert isinstance(made, dict)
    return made


def completion(message: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "engine's own",
        "choices": [
            {
                "index": 0,
                "message": message or {"role": "assistant", "content": "hello"},
                "finish_reason": "stop",
                **choice,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_a_minimal_payload_gets_the_defaults_of_the_protocol() -> None:
    assert request({"task": "openai/chat-completion", "model": "asked", "messages": MESSAGES}) == {
        "model": "served",
        "messages": MESSAGES,
        "stream": False,
        "temperature": 0.7,
        "top_p": 1.0,
    }


def test_every_other_field_reaches_the_engine() -> None:
    fields = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "response_format": {"type": "json_object"},
        "seed": 7,
        "n": 2,
        "max_tokens": 9,
        "temperature": 0,
        "top_p": 0.5,
        "stop": None,
    }
    assert request({"messages": MESSAGES, **fields}).items() >= fields.items()


def test_a_stream_is_asked_as_a_whole_answer() -> None:
    made = request({"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}})
    assert made["stream"] is False
    assert "stream_options" not in made


def test_null_sampling_values_get_the_defaults() -> None:
    made = request({"messages": MESSAGES, "temperature": None, "top_p": None})
    assert (made["temperature"], made["top_p"]) == (0.7, 1.0)


@pytest.mark.parametrize("payload", [b"{}", b'{"messages":null}', b'{"messages":[ ]}', b'{"messages":"hi"}'])
def test_a_payload_without_messages_is_refused_in_the_words_of_the_protocol(payload: bytes) -> None:
    with pytest.raises(JobRefused, match=r"^No messages provided in payload$"):
        FAMILY.request(parse_payload(payload), "served")


def test_a_result_has_the_form_of_the_protocol() -> None:
    assert result(completion()) == {
        "status": "success",
        "config_id": "cfg",
        "task": "openai/chat-completion",
        "completion": {
            "id": "chatcmpl-1",
            "model": "served",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        },
        "processed_at": "2026-01-02T03:04:05.000006",
    }


def test_tool_calls_and_reasoning_come_through_and_empty_members_do_not() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call],
        "reasoning_content": "thought",
        "refusal": None,
        "annotations": [],
    }
    made = result(completion(message, finish_reason="tool_calls"))
    assert made["completion"]["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [call],
        "reasoning_content": "thought",
    }


def test_logprobs_come_through_when_there_are_any() -> None:
    choice = result(completion(logprobs={"content": [{"token": "a", "logprob": -0.5}]}))["completion"][
        "choices"
    ][0]
    assert choice["logprobs"] == {"content": [{"token": "a", "logprob": -0.5}]}
    assert "logprobs" not in result(completion(logprobs=None))["completion"]["choices"][0]


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None}])
def test_a_missing_usage_counts_as_zero(usage: object) -> None:
    made = result({**completion(), "usage": usage})
    assert made["completion"]["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"<html>", "no result"),
        (b"[]", "no result"),
        (b"{}", "no result"),
        (b'{"choices":[]}', "without any choice"),
        (b'{"choices":[{"message":"x"}]}', "no result"),
        (b'{"choices":[{"message":{"content":"cut', "no result"),
        (b'{"error":{"message":"EngineCore died"}}', "with an error: EngineCore died"),
        (json.dumps(completion(finish_reason="abort")).encode(), "finish_reason: abort"),
        (b'{"choices":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no result|nested too deeply"),
    ],
)
def test_a_success_that_is_none_is_the_engines_fault(answer: bytes, text: str) -> None:
    with pytest.raises(EngineFailed, match=text):
        FAMILY.result(answer, CONTEXT)
