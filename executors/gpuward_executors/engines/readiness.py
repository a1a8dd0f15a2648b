"""When an engine is ready: its health address answers 200, and it lists its models."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from gpuward_executors.core.events import EngineHealth
from gpuward_executors.errors import EngineFailed

_FIRST_INTERVAL_S = 0.05
_INTERVAL_GROWTH = 1.25
_INTERVAL_MAX_S = 1.0
#: Deadline of one look. A server that is alive answers in milliseconds.
LOOK_TIMEOUT_S = 2.0


class Http(Protocol):
    """What is needed of an HTTP client."""

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and body.

        Raises:
            EngineFailed: the connection was refused or lost.
            TimeoutError: no answer in time.
        """


class _Version(msgspec.Struct):
    version: str = ""


class _Model(msgspec.Struct):
    id: str = ""


class _Models(msgspec.Struct):
    data: list[_Model] = []


class Answered(msgspec.Struct, frozen=True):
    """What an engine says of itself once it is ready."""

    #: Empty when it does not say.
    version: str
    #: Names under which it serves.
    models: tuple[str, ...]


async def until_ready(http: Http, health_path: str) -> Answered:
    """Wait for an engine, however long it takes; cancel this when the engine ends or time is up."""
    interval_s = _FIRST_INTERVAL_S
    while True:
        if await _answers(http, health_path):
            models = await _models(http)
            if models is not None:
                return Answered(await _version(http), models)
        await asyncio.sleep(interval_s)
        interval_s = min(interval_s * _INTERVAL_GROWTH, _INTERVAL_MAX_S)


async def health(http: Http, health_path: str) -> EngineHealth:
    """Look at an engine once."""
    try:
        status, _ = await http.get(health_path, LOOK_TIMEOUT_S)
    except EngineFailed:
        return EngineHealth.DEAD
    except TimeoutError:
        return EngineHealth.SILENT
    return EngineHealth.HEALTHY if status == 200 else EngineHealth.DEAD


async def _answers(http: Http, health_path: str) -> bool:
    return await health(http, health_path) is EngineHealth.HEALTHY


async def _models(http: Http) -> tuple[str, ...] | None:
    try:
        status, body = await http.get("/v1/models", LOOK_TIMEOUT_S)
        if status != 200:
            return None
        return tuple(model.id for model in msgspec.json.decode(body, type=_Models).data)
    except (EngineFailed, TimeoutError):
        return None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ()  # it serves the address in a form of its own: ready, names unknown


async def _version(http: Http) -> str:
    # Not part of the OpenAI interface: good to know, never needed.
    try:
        status, body = await http.get("/version", LOOK_TIMEOUT_S)
        return msgspec.json.decode(body, type=_Version).version if status == 200 else ""
    except (EngineFailed, TimeoutError, msgspec.MsgspecError, ValueError, RecursionError):
        return ""
