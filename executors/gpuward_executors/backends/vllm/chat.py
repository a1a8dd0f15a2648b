"""Chat completions: payload to engine request, engine answer to result. Pure."""

from __future__ import annotations

import msgspec

from gpuward_executors.backends.vllm.family import (
    Context,
    Payload,
    Result,
    TaskFamily,
    check_answer,
    encode_payload,
    present,
    raw,
    unusable,
)
from gpuward_executors.errors import EngineFailed, JobRefused

TASK = "openai/chat-completion"
#: An engine that was told to stop cuts its answers and says so with this finish reason, status 200.
ABORTED = "abort"
_DEFAULTS = {"temperature": 0.7, "top_p": 1.0}
#: Members of a message that are always there, in this order.
_MESSAGE_FIRST = ("role", "content")


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class _Choice(msgspec.Struct):
    message: dict[str, msgspec.Raw]
    index: int = 0
    finish_reason: str | None = None
    logprobs: msgspec.Raw = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    id: str = ""
    usage: _Usage | None = None


class _ResultUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _ResultChoice(msgspec.Struct, omit_defaults=True):
    index: int
    message: dict[str, msgspec.Raw]
    finish_reason: str | None
    logprobs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Completion(msgspec.Struct):
    id: str
    model: str
    choices: list[_ResultChoice]
    usage: _ResultUsage


class _ChatResult(Result, kw_only=True):
    completion: _Completion
    processed_at: str


_answers = msgspec.json.Decoder(_Answer)
_encode = msgspec.json.Encoder().encode


def request(payload: Payload, served_model: str) -> bytes:
    """The caller's payload as the engine's request: everything passes but what the worker decides.

    Raises:
        JobRefused: there are no messages.
    """
    if not _filled_list(payload.get("messages")):
        raise JobRefused("No messages provided in payload")
    body = dict(payload)
    body.pop("task", None)
    body.pop("stream_options", None)  # allowed with streams only, and nobody here reads a stream
    body["model"] = raw(served_model)
    body["stream"] = raw(False)
    for name, value in _DEFAULTS.items():
        if not present(body, name):
            body[name] = raw(value)
    return encode_payload(body)


def result(answer: bytes, context: Context) -> bytes:
    """The engine's answer as the job's result.

    Raises:
        EngineFailed: it is no completion, or one that was cut off.
    """
    check_answer(answer)
    try:
        completion = _answers.decode(answer)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise unusable(error) from error
    if not completion.choices:
        raise EngineFailed("the engine answered without any choice")
    if any(choice.finish_reason == ABORTED for choice in completion.choices):
        raise EngineFailed("the engine broke the completion off (finish_reason: abort)")
    usage = completion.usage or _Usage()
    return _encode(
        _ChatResult(
            config_id=context.config_id,
            task=context.task,
            completion=_Completion(
                id=completion.id,
                model=context.served_model,
                choices=[_choice(choice) for choice in completion.choices],
                usage=_ResultUsage(
                    prompt_tokens=usage.prompt_tokens or 0,
                    completion_tokens=usage.completion_tokens or 0,
                    total_tokens=usage.total_tokens or 0,
                ),
            ),
            processed_at=context.processed_at,
        )
    )


FAMILY = TaskFamily(TASK, "/v1/chat/completions", request, result)


def _choice(choice: _Choice) -> _ResultChoice:
    null = msgspec.Raw(b"null")
    message = {name: choice.message.get(name, null) for name in _MESSAGE_FIRST}
    # Tool calls, reasoning and whatever engines come to add; empty members would only be noise.
    for name, value in choice.message.items():
        if name not in message and bytes(value) not in {b"null", b"[]"}:
            message[name] = value
    made = _ResultChoice(choice.index, message, choice.finish_reason)
    if bytes(choice.logprobs) != b"null":
        made.logprobs = choice.logprobs
    return made


def _filled_list(value: msgspec.Raw | None) -> bool:
    if value is None:
        return False
    text = bytes(value)
    return text[:1] == b"[" and text[1:].lstrip(b" \t\r\n")[:1] != b"]"
