"""Which engine belongs to which kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import assert_never

from gpuward_executors.engines import command, simulated, vllm
from gpuward_executors.engines.base import Engine
from gpuward_executors.engines.echo import EchoEngine
from gpuward_executors.engines.readiness import Http
from gpuward_executors.engines.server import ServerEngine
from gpuward_executors.logs import Logs
from gpuward_ipc.startup import EngineKind, ExecutorStart


def make_engine(
    start: ExecutorStart,
    *,
    loop: asyncio.AbstractEventLoop,
    http: Http,
    open_http: Callable[[], None],
    logs: Logs,
    environ: Mapping[str, str],
) -> Engine:
    """The engine that a start file asks for, not started yet; arguments as in ``ServerEngine``."""
    spec = start.engine
    if spec.kind is EngineKind.ECHO:
        return EchoEngine()
    return ServerEngine(
        spec,
        command_line(start),
        loop=loop,
        http=http,
        open_http=open_http,
        logs=logs,
        environ=environ,
        work_dir=Path(start.work_dir),
    )


def command_line(start: ExecutorStart) -> list[str]:
    """Command line of the engine's process; empty for an engine without one."""
    match start.engine.kind:
        case EngineKind.VLLM:
            return vllm.argv(start.engine)
        case EngineKind.COMMAND:
            return command.argv(start.engine, start.gpus)
        case EngineKind.SIMULATED:
            return simulated.argv(start.engine)
        case EngineKind.ECHO:
            return []
        case _:
            assert_never(start.engine.kind)
