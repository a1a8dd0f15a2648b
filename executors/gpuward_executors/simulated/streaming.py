"""Knows server-sent events: how an answer travels piece by piece and how it breaks off."""

from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

from gpuward_executors.simulated.answers import Answer
from gpuward_executors.simulated.context import Context
from gpuward_executors.simulated.engine_link import EngineDead, Ticket
from gpuward_executors.simulated.http_errors import engine_dead
from gpuward_executors.simulated.misbehaviour import cut

_DONE = b"data: [DONE]\n\n"


class StreamOptions(msgspec.Struct):
    """What a caller may ask of a stream."""

    include_usage: bool = False


class Usage(msgspec.Struct):
    """Tokens of one request, as the answer states them."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None = None


def usage_of(ticket: Ticket) -> Usage:
    """Return the tokens of a request so far."""
    return Usage(ticket.prompt_tokens, ticket.prompt_tokens + ticket.produced, ticket.produced)


async def pieces(ticket: Ticket, answer: Answer) -> AsyncIterator[str]:
    """Yield the text of each engine output as it comes.

    Raises:
        EngineDead: The engine died before the end.
    """
    seen = 0
    while not ticket.finish_reason or ticket.produced > seen:
        await ticket.progress(seen)
        start, seen = seen, ticket.produced
        if seen > start:
            # The engine goes on while the caller is busy with this piece.
            yield answer.text(start, seen)


async def stream(
    context: Context, request: web.Request, chunks: AsyncIterator[msgspec.Struct]
) -> web.StreamResponse:
    """Send chunks as events, ending in `[DONE]`; an engine's death is an event too, since the 200 is out.

    Args:
        context: The running engine.
        request: The request to answer.
        chunks: Bodies of the events.
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    try:
        async for chunk in chunks:
            await response.write(b"data: %b\n\n" % msgspec.json.encode(chunk))
    except EngineDead:
        if context.cut_streams:
            cut(request)
            return response
        await response.write(b"data: %b\n\n" % engine_dead().body)
    await response.write(_DONE)
    return response
