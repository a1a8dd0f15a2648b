from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from gpuward_executors.backends.openai_client import EngineClient
from gpuward_executors.engines.base import Engine
from gpuward_executors.engines.echo import EchoEngine
from gpuward_executors.engines.registry import command_line, make_engine
from gpuward_executors.engines.server import ServerEngine
from gpuward_executors.logs import Logs
from gpuward_ipc.startup import EngineKind, EngineSpec, ExecutorStart
from gpuward_ipc.types import ExecutorName, Incarnation


def start(kind: EngineKind) -> ExecutorStart:
    spec = EngineSpec(kind=kind, model="m", command=("run", "{gpus}"))
    return ExecutorStart(ExecutorName("e"), Incarnation(1), spec, 1, "/w", "/w/spool", gpus=(3,))


@pytest.mark.parametrize(
    ("kind", "beginning"),
    [(EngineKind.VLLM, ["vllm", "serve", "m"]), (EngineKind.COMMAND, ["run", "3"]), (EngineKind.ECHO, [])],
)
def test_each_kind_has_its_command_line(kind: EngineKind, beginning: list[str]) -> None:
    line = command_line(start(kind))
    assert line[: len(beginning)] == beginning
    assert bool(line) is bool(beginning)


def test_the_simulated_kind_runs_our_own_program() -> None:
    assert command_line(start(EngineKind.SIMULATED))[1:4] == ["-m", "gpuward_executors.simulated", "serve"]


@pytest.mark.parametrize("kind", list(EngineKind))
def test_every_kind_makes_an_engine(kind: EngineKind, tmp_path: Path) -> None:
    async def make() -> Engine:
        http = EngineClient("127.0.0.1", 1, request_timeout_s=1, api_key="")
        log = os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)
        try:
            return make_engine(
                msgspec.structs.replace(start(kind), work_dir=str(tmp_path)),
                loop=asyncio.get_running_loop(),
                http=http,
                open_http=http.open,
                logs=Logs(log),
                environ={},
            )
        finally:
            os.close(log)

    assert isinstance(asyncio.run(make()), EchoEngine if kind is EngineKind.ECHO else ServerEngine)
