"""A server engine against real processes: a small program that answers the three addresses, or misbehaves."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from gpuward_executors.backends.openai_client import EngineClient
from gpuward_executors.core.events import (
    EngineAdvanced,
    EngineAnswered,
    EngineEnded,
    EngineHealth,
    EngineStarted,
    ExecutorEvent,
)
from gpuward_executors.engines.server import ServerEngine
from gpuward_executors.logs import Logs
from gpuward_ipc.startup import EngineKind, EngineSpec
from support.executor_process import free_port

E = TypeVar("E", bound=ExecutorEvent)

SERVER = """
import http.server, os, sys, signal
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("INFO Starting to load model x", flush=True)
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = {
            "/health": b"",
            "/v1/models": b'{"data":[{"id":"other"}]}',
            "/version": b'{"version":"7"}',
        }[self.path]
        if os.path.exists("sick"): self.send_response(503)
        else: self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


class Watched:
    """A server engine and the events it reports."""

    def __init__(self, folder: Path, port: int, argv: list[str], kind: EngineKind) -> None:
        loop = asyncio.get_running_loop()
        spec = EngineSpec(kind=kind, port=port, served_model_name="mine")
        self.http = EngineClient("127.0.0.1", port, request_timeout_s=5, api_key="")
        self.log = folder / "log"
        self._log_fd = os.open(self.log, os.O_CREAT | os.O_WRONLY)
        self.engine = ServerEngine(
            spec,
            argv,
            loop=loop,
            http=self.http,
            open_http=self.http.open,
            logs=Logs(self._log_fd),
            environ=dict(os.environ),
            work_dir=folder,
        )
        self.events: asyncio.Queue[ExecutorEvent] = asyncio.Queue()
        self.ended = False

    def report(self, event: ExecutorEvent) -> None:
        self.ended = isinstance(event, EngineEnded)
        self.events.put_nowait(event)

    async def until(self, kind: type[E]) -> E:
        while True:
            event = await asyncio.wait_for(self.events.get(), 30)
            if isinstance(event, kind):
                return event

    async def close(self) -> None:
        if not self.ended:
            self.engine.kill()
            await self.until(EngineEnded)
        await self.http.close()
        os.close(self._log_fd)


@asynccontextmanager
async def engine(
    folder: Path, *arguments: str, argv: list[str] | None = None, kind: EngineKind = EngineKind.COMMAND
) -> AsyncIterator[Watched]:
    port = free_port()
    command = argv or [sys.executable, "-I", "-S", "-c", SERVER, str(port), *arguments]
    watched = Watched(folder, port, command, kind)
    watched.engine.start(watched.report)
    try:
        yield watched
    finally:
        await watched.close()


@pytest.mark.slow
def test_a_server_is_started_awaited_probed_and_stopped(tmp_path: Path) -> None:
    async def run() -> None:
        async with engine(tmp_path) as it:
            started = await it.until(EngineStarted)
            assert started.pid == it.engine.pid > 0
            assert (await it.until(EngineAdvanced)).phase == "loading weights"
            assert (await it.until(EngineAnswered)).engine_version == "7"
            assert "engine.model_not_listed" in it.log.read_text()
            assert await it.engine.probe() is EngineHealth.HEALTHY
            (tmp_path / "sick").touch()
            assert await it.engine.probe() is EngineHealth.DEAD
            assert it.engine.rss_bytes() > 1_000_000
            it.engine.stop(20.0)
            ended = await it.until(EngineEnded)
            assert (ended.exit_code, ended.signal, ended.permanent) == (None, 15, False)
            assert await it.engine.probe() is EngineHealth.DEAD

    asyncio.run(run())


@pytest.mark.slow
def test_a_server_that_ignores_term_is_killed_after_its_grace(tmp_path: Path) -> None:
    async def run() -> None:
        async with engine(tmp_path, "stubborn") as it:
            await it.until(EngineAnswered)
            it.engine.stop(0.05)
            assert (await it.until(EngineEnded)).signal == 9

    asyncio.run(run())


@pytest.mark.slow
def test_without_grace_a_server_is_killed_at_once_and_ends_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with engine(tmp_path) as it:
            it.engine.stop(60.0)
            it.engine.stop(0.0)
            assert (await it.until(EngineEnded)).signal in {9, 15}
            it.engine.stop(0.0)
            it.engine.kill()
            assert it.events.empty()

    asyncio.run(run())


def test_a_death_while_starting_is_noticed_and_told_with_the_last_words(tmp_path: Path) -> None:
    async def run() -> EngineEnded:
        code = "print('RuntimeError: no GPU'); print('bye'); raise SystemExit(1)"
        async with engine(tmp_path, argv=[sys.executable, "-I", "-S", "-c", code]) as it:
            return await it.until(EngineEnded)

    assert asyncio.run(run()) == EngineEnded(
        exit_code=1,
        detail="the engine exited with code 1 before it was ready; it said: RuntimeError: no GPU",
    )


def test_a_command_that_is_not_there_is_permanent_and_named(tmp_path: Path) -> None:
    async def run() -> EngineEnded:
        async with engine(tmp_path, argv=["no-such-vllm"]) as it:
            return await it.until(EngineEnded)

    ended = asyncio.run(run())
    assert ended.permanent
    assert ended.exit_code == 127
    assert "install 'no-such-vllm' or correct the engine's command" in ended.detail


@pytest.mark.parametrize(("kind", "permanent"), [(EngineKind.VLLM, True), (EngineKind.COMMAND, False)])
def test_a_command_line_that_vllm_does_not_understand_is_permanent(
    tmp_path: Path, kind: EngineKind, permanent: bool
) -> None:
    async def run() -> EngineEnded:
        argv = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            "print('error: unrecognized arguments'); raise SystemExit(2)",
        ]
        async with engine(tmp_path, argv=argv, kind=kind) as it:
            return await it.until(EngineEnded)

    ended = asyncio.run(run())
    assert ended.permanent is permanent
    assert ("correct the engine's arguments" in ended.detail) is permanent


def test_a_port_that_somebody_uses_is_no_place_to_start(tmp_path: Path) -> None:
    """Without this, a server left over from another life would be taken for ours."""

    async def run() -> EngineEnded:
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.listen()
            watched = Watched(tmp_path, stranger.getsockname()[1], ["true"], EngineKind.COMMAND)
            watched.engine.start(watched.report)
            ended = await watched.until(EngineEnded)
            assert await watched.engine.probe() is EngineHealth.DEAD
            await watched.close()
            return ended

    ended = asyncio.run(run())
    assert "is used by another process" in ended.detail
    assert not ended.permanent


def test_a_work_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    async def run() -> EngineEnded:
        (tmp_path / "tmp").write_text("a file in the way")
        async with engine(tmp_path, argv=["true"]) as it:
            return await it.until(EngineEnded)

    assert "could not be started in" in asyncio.run(run()).detail
