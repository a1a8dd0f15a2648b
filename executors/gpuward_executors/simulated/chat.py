"""Knows `/v1/chat/completions`: the last message is echoed, whole or as a stream."""

import time
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from gpuward_executors.simulated.answers import Answer, echo, token_count
from gpuward_executors.simulated.context import Context
from gpuward_executors.simulated.engine_link import Ticket
from gpuward_executors.simulated.faults import Fault, FaultKind
from gpuward_executors.simulated.http_errors import bad_request, malformed
from gpuward_executors.simulated.misbehaviour import before_answer, spoilt
from gpuward_executors.simulated.streaming import StreamOptions, Usage, pieces, stream, usage_of

_TEMPERATURE_MAX = 2.0


class ContentPart(msgspec.Struct):
    """A part of a message; only text counts here."""

    type: str = "text"
    text: str = ""


class Message(msgspec.Struct):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None

    def text(self) -> str:
        """Return the message's text, its parts joined."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(msgspec.Struct):
    """What a caller sends; unknown fields are accepted, as vLLM does."""

    messages: list[Message]
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float | None = None
    gpuward_fault: str | None = None


class AnswerMessage(msgspec.Struct):
    """The assistant's message."""

    content: str
    role: str = "assistant"
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: tuple[()] = ()
    reasoning: None = None


class Choice(msgspec.Struct):
    """The only choice."""

    message: AnswerMessage
    finish_reason: str
    index: int = 0
    logprobs: None = None
    stop_reason: None = None


class Completion(msgspec.Struct):
    """The whole answer."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    object: str = "chat.completion"
    service_tier: None = None
    system_fingerprint: None = None
    prompt_logprobs: None = None


class Delta(msgspec.Struct, omit_defaults=True):
    """What a chunk adds to the message."""

    role: str | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct):
    """The only choice, in a chunk."""

    delta: Delta
    index: int = 0
    logprobs: None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct, omit_defaults=True):
    """One event of a stream."""

    id: str
    created: int
    model: str
    choices: tuple[ChunkChoice, ...]
    object: str = msgspec.field(default_factory=lambda: "chat.completion.chunk")
    usage: Usage | None = None


_decoder = msgspec.json.Decoder(ChatRequest)
_encoder = msgspec.json.Encoder()


async def chat_completions(context: Context, request: web.Request) -> web.StreamResponse:
    """Answer one chat request."""
    try:
        body = _decoder.decode(await request.read())
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise malformed(error) from error
    model = context.check_model(body.model)
    if not body.messages:
        raise bad_request("messages must hold at least one message.", "messages")
    if body.temperature is not None and not 0 <= body.temperature <= _TEMPERATURE_MAX:
        raise bad_request(f"temperature must be in [0, 2], got {body.temperature}.", "temperature")
    texts = [message.text() for message in body.messages]
    prompt_tokens = sum(map(token_count, texts))
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    tokens_max = context.check_length(prompt_tokens, sum(map(len, texts)), limit)
    fault = context.fault_for(body, texts[-1])
    child_fault = before_answer(context, request, fault)
    tokens_min = tokens_max if body.ignore_eos else max(body.min_tokens, context.options.answer_tokens)
    answer = Answer(_told(texts[-1], fault), tokens_max, tokens_min)
    context.check_room()
    reason = "abort" if fault is not None and fault.kind is FaultKind.ABORT_ANSWER else answer.finish_reason
    streamed = bool(body.stream)
    # An answer that is broken off holds only part of its text.
    tokens = len(answer.tokens) if reason != "abort" else (len(answer.tokens) + 1) // 2
    ticket = context.engine.submit(prompt_tokens, tokens, reason, streamed=streamed, fault=child_fault)
    try:
        if streamed and (fault is None or fault.kind is not FaultKind.GARBAGE):
            wants_usage = body.stream_options is not None and body.stream_options.include_usage
            return await stream(
                context, request, _chunks(context, model, ticket, answer, with_usage=wants_usage)
            )
        await ticket.progress()
    finally:
        # No-op for a request that ended; otherwise the caller has gone and nobody wants the rest.
        context.engine.abort(ticket)
    encoded = _whole(context, model, ticket, answer, fault)
    return spoilt(context, request, fault, encoded) or web.Response(
        body=encoded, content_type="application/json"
    )


def _told(text: str, fault: Fault | None) -> str:
    if fault is not None and fault.kind is FaultKind.BIG:
        # One token, so that a limit on tokens does not cut it.
        return "x" * int(fault.argument)
    return echo(text)


def _whole(context: Context, model: str, ticket: Ticket, answer: Answer, fault: Fault | None) -> bytes:
    completion = Completion(
        id=context.request_id("chatcmpl"),
        created=int(time.time()),
        model=model,
        choices=(Choice(AnswerMessage(answer.text(0, ticket.produced)), ticket.finish_reason),),
        usage=usage_of(ticket),
    )
    encoded = _encoder.encode(completion)
    if fault is not None and fault.kind is FaultKind.BIG:
        # The size asked for is that of the whole body.
        surplus = min(len(encoded) - int(fault.argument), int(fault.argument))
        message = completion.choices[0].message
        message.content = message.content[surplus:]
        encoded = _encoder.encode(completion)
    return encoded


async def _chunks(
    context: Context, model: str, ticket: Ticket, answer: Answer, *, with_usage: bool
) -> AsyncIterator[Chunk]:
    chunk_id = context.request_id("chatcmpl")
    created = int(time.time())

    def chunk(*choices: ChunkChoice, usage: Usage | None = None) -> Chunk:
        return Chunk(chunk_id, created, model, choices, usage=usage)

    yield chunk(ChunkChoice(Delta(role="assistant", content="")))
    async for text in pieces(ticket, answer):
        yield chunk(ChunkChoice(Delta(content=text)))
    yield chunk(ChunkChoice(Delta(content=""), finish_reason=ticket.finish_reason))
    if with_usage:
        yield chunk(usage=usage_of(ticket))
