"""Embeddings: payload to engine request, engine answer to result. Pure."""

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

TASK = "openai/embeddings"
#: Inputs that count as none, as in the reference worker: it asks for a value that is true.
_EMPTY = frozenset({b"null", b'""', b"false", b"0"})


class _Embedding(msgspec.Struct):
    #: Numbers, or a base64 string; passed through as the engine wrote it.
    embedding: msgspec.Raw
    index: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Embedding]
    usage: _Usage | None = None


class _EmbeddingResult(Result, kw_only=True):
    embeddings: list[_Embedding]
    prompt_tokens: int
    total_tokens: int
    processed_at: str


_answers = msgspec.json.Decoder(_Answer)
_encode = msgspec.json.Encoder().encode


def request(payload: Payload, served_model: str) -> bytes:
    """The caller's payload as the engine's request; a single input becomes a list of one.

    Raises:
        JobRefused: there is no input.
    """
    value = bytes(payload["input"]) if present(payload, "input") else b"null"
    if value in _EMPTY or (value[:1] == b"[" and value[1:].lstrip(b" \t\r\n")[:1] == b"]"):
        raise JobRefused("No input provided in payload")
    body = dict(payload)
    body.pop("task", None)
    body["model"] = raw(served_model)
    if value[:1] != b"[":
        body["input"] = msgspec.Raw(b"[" + value + b"]")
    return encode_payload(body)


def result(answer: bytes, context: Context) -> bytes:
    """The engine's answer as the job's result.

    Raises:
        EngineFailed: it holds no embeddings.
    """
    check_answer(answer)
    try:
        found = _answers.decode(answer)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise unusable(error) from error
    if not found.data or any(bytes(item.embedding)[:1] not in {b"[", b'"'} for item in found.data):
        raise EngineFailed("the engine answered without any embedding")
    usage = found.usage or _Usage()
    return _encode(
        _EmbeddingResult(
            config_id=context.config_id,
            task=context.task,
            embeddings=found.data,
            prompt_tokens=usage.prompt_tokens or 0,
            total_tokens=usage.total_tokens or 0,
            processed_at=context.processed_at,
        )
    )


FAMILY = TaskFamily(TASK, "/v1/embeddings", request, result)
