"""Knows `/v1/embeddings`: vectors that follow from the input, as numbers or base64."""

import base64
import time
from typing import Literal

import msgspec
from aiohttp import web

from gpuward_executors.simulated.answers import embed, floats, token_count
from gpuward_executors.simulated.context import Context
from gpuward_executors.simulated.faults import FaultKind
from gpuward_executors.simulated.http_errors import bad_request, malformed
from gpuward_executors.simulated.misbehaviour import before_answer, spoilt
from gpuward_executors.simulated.streaming import Usage, usage_of

_DIMENSIONS_MAX = 65536


class EmbeddingRequest(msgspec.Struct):
    """What a caller sends; unknown fields are accepted."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    gpuward_fault: str | None = None


class Embedding(msgspec.Struct):
    """One vector."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingList(msgspec.Struct):
    """The whole answer."""

    id: str
    created: int
    model: str
    data: list[Embedding]
    usage: Usage
    object: str = "list"
    padding: str | msgspec.UnsetType = msgspec.UNSET


_decoder = msgspec.json.Decoder(EmbeddingRequest)


async def embeddings(context: Context, request: web.Request) -> web.StreamResponse:
    """Answer one embedding request."""
    try:
        body = _decoder.decode(await request.read())
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise malformed(error) from error
    model = context.check_model(body.model)
    inputs = _texts(body.input)
    dimensions = context.options.embedding_dimensions if body.dimensions is None else body.dimensions
    if not 1 <= dimensions <= _DIMENSIONS_MAX:
        raise bad_request(f"dimensions must be in [1, {_DIMENSIONS_MAX}], got {dimensions}.", "dimensions")
    if not inputs or not all(inputs):
        raise bad_request("The input must hold at least one text, and no empty one.", "input")
    for text in inputs:
        context.check_length(token_count(text), len(text), None)
    fault = context.fault_for(body, inputs[0])
    child_fault = before_answer(context, request, fault)
    context.check_room()
    ticket = context.engine.submit(sum(map(token_count, inputs)), 0, "stop", fault=child_fault)
    try:
        await ticket.progress()
    finally:
        context.engine.abort(ticket)
    vectors = [embed(text, dimensions) for text in inputs]
    answer = EmbeddingList(
        id=context.request_id("embd"),
        created=int(time.time()),
        model=model,
        data=[
            Embedding(
                index,
                floats(vector) if body.encoding_format == "float" else base64.b64encode(vector).decode(),
            )
            for index, vector in enumerate(vectors)
        ],
        usage=usage_of(ticket),
    )
    encoded = msgspec.json.encode(answer)
    if fault is not None and fault.kind is FaultKind.BIG:
        answer.padding = ""
        answer.padding = "x" * (int(fault.argument) - len(msgspec.json.encode(answer)))
        encoded = msgspec.json.encode(answer)
    return spoilt(context, request, fault, encoded) or web.Response(
        body=encoded, content_type="application/json"
    )


def _texts(value: str | list[str | int | list[int]]) -> list[str]:
    if isinstance(value, str):
        return [value]
    if value and all(isinstance(item, int) for item in value):
        # A list of numbers is one input, already cut into tokens.
        return [" ".join(map(str, value))]
    return [" ".join(map(str, item)) if isinstance(item, list) else str(item) for item in value]
