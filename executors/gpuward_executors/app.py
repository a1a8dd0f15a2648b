"""The executor's composition root: reads the start, builds and joins everything, runs, says the exit code."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from gpuward_executors import config, lifeline
from gpuward_executors.backends.echo import EchoBackend
from gpuward_executors.backends.openai_client import EngineClient
from gpuward_executors.backends.registry import Registry
from gpuward_executors.backends.vllm import chat, embeddings
from gpuward_executors.backends.vllm.backend import VllmBackend
from gpuward_executors.core.state import (
    EXIT_BAD_START,
    EXIT_SUPERVISOR_GONE,
    ExecutorPolicy,
    initial_state,
)
from gpuward_executors.engines.registry import make_engine
from gpuward_executors.errors import StartInvalid
from gpuward_executors.logs import Logs
from gpuward_executors.loop import ExecutorLoop
from gpuward_executors.runs import Runs
from gpuward_ipc.channel import SupervisorLink
from gpuward_ipc.messages import Stop
from gpuward_ipc.startup import EngineKind, ExecutorStart

_STDOUT = 1
#: How long the last message may take to reach the kernel.
_FLUSH_MS = 1000
#: What the reference worker sends to engines that ask for no key.
_NO_API_KEY = "EMPTY"


def main(environ: Mapping[str, str]) -> int:
    """Be an executor; returns the exit code."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    lifeline.arm_parent_death_signal()
    try:
        settings = config.load(environ)
        config.make_folders(settings.start)
    except StartInvalid as error:
        Logs(_STDOUT).log("error", "executor.start_invalid", {"error": str(error)})
        return EXIT_BAD_START
    if not lifeline.parent_is(settings.parent_pid):
        return EXIT_SUPERVISOR_GONE
    return asyncio.run(_live(settings, environ))


async def _live(settings: config.Settings, environ: Mapping[str, str]) -> int:
    loop = asyncio.get_running_loop()
    start = settings.start
    logs = Logs(_STDOUT, start.log_level, loop)
    if settings.death_fd is not None:
        lifeline.watch_death_fd(loop, settings.death_fd, lifeline.kill_group)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    link = SupervisorLink(context, settings.link, start.executor, start.incarnation)
    http = EngineClient(
        start.engine.host,
        start.engine.port,
        request_timeout_s=start.engine.request_timeout_s,
        api_key=environ.get("VLLM_API_KEY") or _NO_API_KEY,
    )
    engine = make_engine(start, loop=loop, http=http, open_http=http.open, logs=logs, environ=environ)
    executor = ExecutorLoop(
        loop=loop,
        state=initial_state(_policy(start)),
        link=link,
        engine=engine,
        logs=logs,
        make_runs=lambda report: Runs(loop, _backends(start, http), Path(start.spool_dir), report, logs),
    )
    loop.set_exception_handler(partial(_on_loop_error, executor, logs))
    # A stop from the outside, for example by somebody at a shell. Ctrl-C is the supervisor's to take.
    stop = Stop(grace_s=start.engine.stop_grace_s)
    loop.add_signal_handler(signal.SIGTERM, partial(executor.feed, stop))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return await executor.run()
    finally:
        link.flush_and_close(_FLUSH_MS)
        context.term()
        await http.close()
        logs.flush()


def _on_loop_error(
    executor: ExecutorLoop, logs: Logs, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    error = context.get("exception")
    story = "".join(traceback.format_exception(error)) if isinstance(error, BaseException) else ""
    logs.log("error", "executor.loop_error", {"message": str(context["message"]), "traceback": story[-4000:]})
    # A callback that raised is a bug of ours. Anything else here is a library's remark about a connection.
    if "handle" in context and isinstance(error, BaseException):
        executor.crash(error)


def _policy(start: ExecutorStart) -> ExecutorPolicy:
    return ExecutorPolicy(
        executor=start.executor,
        incarnation=start.incarnation,
        pid=os.getpid(),
        slots=start.slots,
        version=start.version,
        start_timeout_s=start.engine.start_timeout_s,
        heartbeat_s=start.heartbeat_s,
    )


def _backends(start: ExecutorStart, http: EngineClient) -> Registry:
    if start.engine.kind is EngineKind.ECHO:
        return Registry({}, fallback=EchoBackend())
    served = start.engine.served_model_name
    chats = VllmBackend(http, chat.FAMILY, served)
    # A payload that names no task is a chat, as the reference worker has it.
    embedder = VllmBackend(http, embeddings.FAMILY, served)
    return Registry({chat.TASK: chats, "": chats, embeddings.TASK: embedder})
