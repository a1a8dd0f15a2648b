"""Knows `/v1/completions`: the prompt is echoed, whole or as a stream."""

import time
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from gpuward_executors.simulated.answers import Answer, echo, token_count
from gpuward_executors.simulated.context import Context
from gpuward_executors.simulated.engine_link import Ticket
from gpuward_executors.simulated.faults import FaultKind
from gpuward_executors.simulated.http_errors import bad_request, malformed
from gpuward_executors.simulated.misbehaviour import before_answer, spoilt
from gpuward_executors.simulated.streaming import StreamOptions, Usage, pieces, stream, usage_of

#: vLLM's own default for this route.
_MAX_TOKENS_DEFAULT = 16


class CompletionRequest(msgspec.Struct):
    """What a caller sends; unknown fields are accepted."""

    prompt: str | list[str | int]
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = _MAX_TOKENS_DEFAULT
    min_tokens: int = 0
    ignore_eos: bool = False
    gpuward_fault: str | None = None


class Choice(msgspec.Struct):
    """The only choice, of an answer or of a chunk."""

    text: str
    finish_reason: str | None
    index: int = 0
    logprobs: None = None
    stop_reason: None = None


class Completion(msgspec.Struct):
    """An answer or a chunk of one: here they look alike."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None
    object: str = "text_completion"


_decoder = msgspec.json.Decoder(CompletionRequest)


async def completions(context: Context, request: web.Request) -> web.StreamResponse:
    """Answer one completion request; of several prompts they are joined into one answer."""
    try:
        body = _decoder.decode(await request.read())
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise malformed(error) from error
    model = context.check_model(body.model)
    prompt = body.prompt if isinstance(body.prompt, str) else " ".join(map(str, body.prompt))
    if not prompt:
        raise bad_request("The decoder prompt cannot be empty.", "prompt")
    prompt_tokens = token_count(prompt)
    tokens_max = context.check_length(prompt_tokens, len(prompt), body.max_tokens)
    fault = context.fault_for(body, prompt)
    child_fault = before_answer(context, request, fault)
    tokens_min = tokens_max if body.ignore_eos else max(body.min_tokens, context.options.answer_tokens)
    big = int(fault.argument) if fault is not None and fault.kind is FaultKind.BIG else 0
    answer = Answer("x" * big or echo(prompt), tokens_max, tokens_min)
    context.check_room()
    reason = "abort" if fault is not None and fault.kind is FaultKind.ABORT_ANSWER else answer.finish_reason
    streamed = bool(body.stream)
    ticket = context.engine.submit(
        prompt_tokens, len(answer.tokens), reason, streamed=streamed, fault=child_fault
    )
    try:
        if streamed and (fault is None or fault.kind is not FaultKind.GARBAGE):
            wants_usage = body.stream_options is not None and body.stream_options.include_usage
            return await stream(
                context, request, _chunks(context, model, ticket, answer, with_usage=wants_usage)
            )
        await ticket.progress()
    finally:
        context.engine.abort(ticket)
    whole = Completion(
        id=context.request_id("cmpl"),
        created=int(time.time()),
        model=model,
        choices=(Choice(answer.text(0, ticket.produced), ticket.finish_reason),),
        usage=usage_of(ticket),
    )
    encoded = msgspec.json.encode(whole)
    return spoilt(context, request, fault, encoded) or web.Response(
        body=encoded, content_type="application/json"
    )


async def _chunks(
    context: Context, model: str, ticket: Ticket, answer: Answer, *, with_usage: bool
) -> AsyncIterator[Completion]:
    chunk_id = context.request_id("cmpl")
    created = int(time.time())
    async for text in pieces(ticket, answer):
        yield Completion(chunk_id, created, model, (Choice(text, None),), None)
    yield Completion(chunk_id, created, model, (Choice("", ticket.finish_reason),), None)
    if with_usage:
        yield Completion(chunk_id, created, model, (), usage_of(ticket))
