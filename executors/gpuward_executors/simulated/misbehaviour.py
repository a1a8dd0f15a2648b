"""Knows how the faults of answers look on the wire, and how the API process itself dies."""

import asyncio
import os
import resource
import signal
from typing import NoReturn

from aiohttp import web

from gpuward_executors.simulated.context import Context
from gpuward_executors.simulated.faults import ENGINE_FAULTS, GARBAGE_SHAPES, Fault, FaultKind
from gpuward_executors.simulated.http_errors import engine_busy, internal_error
from gpuward_executors.simulated.logs import STDERR, log, write_line

_JSON = "application/json"


def strike_process(context: Context, fault: Fault) -> None:
    """Let a fault that needs no request happen now."""
    if fault.kind is FaultKind.SEGV_API:
        write_line("!!!!!!! Segfault encountered !!!!!!!", STDERR)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault.kind is FaultKind.EXIT1:
        _exit_1(context)
    else:
        context.engine.inflict(fault)


def before_answer(context: Context, request: web.Request, fault: Fault | None) -> Fault | None:
    """Let a fault happen that leaves nothing to answer; the others are for later.

    Returns:
        The fault, if it is one of the engine child, None otherwise.

    Raises:
        ApiError: The fault is this error.
    """
    if fault is None:
        return None
    if fault.kind in ENGINE_FAULTS:
        return fault
    if fault.kind in {FaultKind.SEGV_API, FaultKind.EXIT1}:
        strike_process(context, fault)
    elif fault.kind is FaultKind.ERROR500:
        raise internal_error()
    elif fault.kind is FaultKind.BUSY503:
        raise engine_busy()
    elif fault.kind is FaultKind.DROP:
        cut(request)
        # Goes nowhere, but ends the route.
        raise internal_error()
    return None


def spoilt(context: Context, request: web.Request, fault: Fault | None, body: bytes) -> web.Response | None:
    """Return the garbage to send in place of a good body, or None when the fault is another.

    Args:
        context: The running engine.
        request: The request to answer.
        fault: What this request met.
        body: The JSON object of the good answer.
    """
    if fault is None or fault.kind is not FaultKind.GARBAGE:
        return None
    shape = fault.argument or context.random.choice(GARBAGE_SHAPES)
    if shape == "text":
        return web.Response(text="<html><body>It works!</body></html>", content_type="text/html")
    if shape == "shape":
        return web.Response(
            body=b'{"object":"chat.completion","choices":"none","data":7}', content_type=_JSON
        )
    if shape == "truncated":
        return web.Response(body=body[: len(body) // 2], content_type=_JSON)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {_JSON}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    transport = request.transport
    if isinstance(transport, asyncio.WriteTransport):
        transport.write(head + body[: len(body) // 2])
        # Unlike an abort, closing lets the half that was written arrive.
        transport.close()
    return web.Response(body=b"")


def cut(request: web.Request) -> None:
    """Close the client's connection at once; what the route returns afterwards goes nowhere."""
    if request.transport is not None:
        request.transport.close()


def _exit_1(context: Context) -> NoReturn:
    log(
        "APIServer",
        "ERROR",
        "utils.py:593",
        "RuntimeError: Engine core process EngineCore died unexpectedly.",
    )
    context.engine.kill()
    os._exit(1)
