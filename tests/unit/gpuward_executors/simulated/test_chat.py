"""Chat completions over the wire."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from support.simulated_engine import SimulatedEngine, chat_body, events

PATH = "/v1/chat/completions"


def test_the_answer_echoes_the_last_message(engine: SimulatedEngine) -> None:
    messages = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "no"}]
    messages.append({"role": "user", "content": "job 17"})
    status, answer = engine.post(PATH, {"model": "alias", "messages": messages})
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "alias"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "sim:job 17"
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["completion_tokens"] == 2
    assert usage["total_tokens"] == usage["prompt_tokens"] + 2


def test_parts_of_a_message_are_joined(engine: SimulatedEngine) -> None:
    parts = [{"type": "text", "text": "two "}, {"type": "image_url", "image_url": {"url": "x"}}]
    parts.append({"type": "text", "text": "parts"})
    _, answer = engine.post(PATH, {"messages": [{"role": "user", "content": parts}]})
    assert answer["choices"][0]["message"]["content"] == "sim:two parts"


def test_a_message_without_content_is_answered(engine: SimulatedEngine) -> None:
    _, answer = engine.post(PATH, {"messages": [{"role": "user"}]})
    assert answer["choices"][0]["message"]["content"] == "sim:"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_limit_cuts_the_answer(engine: SimulatedEngine, field: str) -> None:
    _, answer = engine.chat("one two three", **{field: 2})
    assert answer["choices"][0]["message"]["content"] == "sim:one two "
    assert answer["choices"][0]["finish_reason"] == "length"


def test_ignoring_the_end_fills_the_limit(engine: SimulatedEngine) -> None:
    _, answer = engine.chat("go on", max_tokens=5, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 5


def test_a_stream_is_the_same_answer_in_pieces(engine: SimulatedEngine) -> None:
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    status, body = engine.request("POST", PATH, chat_body("a b c d e", **fields))
    assert status == 200
    *chunks, done = events(body)
    assert done == "[DONE]"
    decoded: list[Any] = [msgspec.json.decode(chunk) for chunk in chunks]
    *parts, usage = decoded
    assert len({part["id"] for part in decoded}) == 1
    assert all(part["object"] == "chat.completion.chunk" for part in decoded)
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == "sim:a b c d e"
    assert [part["choices"][0]["finish_reason"] for part in parts[-2:]] == [None, "stop"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 5


def test_usage_is_sent_only_when_asked_for(engine: SimulatedEngine) -> None:
    _, body = engine.request("POST", PATH, chat_body("a", stream=True))
    assert b'"usage"' not in body


@pytest.mark.parametrize(
    ("body", "status", "kind", "part"),
    [
        (b"{oops", 400, "Bad Request", "json_invalid"),
        (b"", 400, "Bad Request", "json_invalid"),
        ({}, 400, "Bad Request", "'messages'"),
        ([], 400, "Bad Request", "1 validation error"),
        ({"messages": []}, 400, "BadRequestError", "at least one message"),
        (chat_body("x", model="nope"), 404, "NotFoundError", "Valid aliases: default, alias."),
        (chat_body("x" * 4000), 400, "BadRequestError", "maximum context length is 512"),
        (chat_body("x", max_tokens=5000), 400, "BadRequestError", "max_tokens=5000 cannot be greater"),
        (chat_body("x", max_tokens=0), 400, "BadRequestError", "at least 1"),
        (chat_body("x", temperature=-1), 400, "BadRequestError", "temperature"),
        (chat_body("x", gpuward_fault="nope"), 400, "BadRequestError", "unknown kind"),
        (b'{"messages":' + b"[" * 100000, 400, "Bad Request", "1 validation error"),
        (b'{"messages":[{"role":"\xff"}]}', 400, "Bad Request", "1 validation error"),
    ],
)
def test_client_errors(engine: SimulatedEngine, body: object, status: int, kind: str, part: str) -> None:
    got, answer = engine.post(PATH, body)
    assert got == status
    assert (answer["error"]["type"], answer["error"]["code"]) == (kind, status)
    assert part in answer["error"]["message"]


def test_a_prompt_of_many_megabytes_is_refused_not_dropped(engine: SimulatedEngine) -> None:
    status, answer = engine.chat("x" * 20_000_000)
    assert status == 400
    assert "20000000 characters" in answer["error"]["message"]


def test_simultaneous_requests_get_each_their_own_answer(engine: SimulatedEngine) -> None:
    futures = [engine.in_background(engine.chat, f"job {number}") for number in range(16)]
    contents = [future.result()[1]["choices"][0]["message"]["content"] for future in futures]
    assert contents == [f"sim:job {number}" for number in range(16)]
