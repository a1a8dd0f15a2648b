"""A real executor process and the supervisor's end of its link, driven step by step by a test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

from gpuward_ipc.channel import ExecutorRouter, Received
from gpuward_ipc.endpoints import (
    ENV_CONFIG,
    ENV_DEATH_FD,
    ENV_EXECUTOR,
    ENV_LINK,
    ENV_NODE,
    ENV_PARENT,
    identity,
    link_endpoint,
)
from gpuward_ipc.messages import Ack, Assign, FromSupervisor, Hello, Ready, Stop, Welcome
from gpuward_ipc.startup import EngineKind, EngineSpec, ExecutorStart, write_start
from gpuward_ipc.types import ExecutorName, Incarnation, JobId, RunId

NAME = ExecutorName("gpu0")
FIRST = Incarnation(1)
DEADLINE_S = 20.0

M = TypeVar("M")


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def simulated(*extra_args: str, port: int | None = None, **fields: Any) -> EngineSpec:
    """A simulated engine on a free port, with faults allowed."""
    return EngineSpec(
        kind=EngineKind.SIMULATED,
        port=port or free_port(),
        model="tiny",
        served_model_name="tiny",
        extra_args=("--allow-faults", *extra_args),
        **fields,
    )


ECHO = EngineSpec(kind=EngineKind.ECHO)


class ExecutorProcess:
    """The process, its log, and a ROUTER that plays the supervisor; a context manager that leaves nothing."""

    def __init__(self, folder: Path, engine: EngineSpec, *, slots: int = 4, **environ: str) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)
        self.work_dir = folder / "w"
        self.start = ExecutorStart(
            executor=NAME,
            incarnation=FIRST,
            engine=engine,
            slots=slots,
            work_dir=str(self.work_dir),
            spool_dir=str(self.work_dir / "spool"),
            heartbeat_s=0.2,
        )
        self.heartbeat_s = 0.2
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = ExecutorRouter(self._context, link_endpoint(folder))
        start_file = folder / "start.json"
        write_start(self.start, start_file)
        death_read, self.death_write = os.pipe()
        log = folder / "log.jsonl"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpuward_executors"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(death_read,),
                env={
                    **os.environ,
                    ENV_LINK: link_endpoint(folder),
                    ENV_CONFIG: str(start_file),
                    ENV_EXECUTOR: identity(NAME, FIRST).decode(),
                    ENV_NODE: "test-node",
                    ENV_DEATH_FD: str(death_read),
                    ENV_PARENT: str(os.getpid()),
                    **environ,
                },
            )
        os.close(death_read)
        self._log = log
        #: Everything received, in order.
        self.received: list[Received] = []
        self._looked_at = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self._log.read_text()[-6000:])
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(DEADLINE_S)
        try:
            os.close(self.death_write)
        except OSError:
            pass
        self.router.close()
        self._context.term()

    # ------------------------------------------------------------ the link

    def send(self, message: FromSupervisor, body: bytes | None = None) -> None:
        assert self.router.send(NAME, FIRST, message, body)

    def assign(self, run: int, payload: object = None, *, task: str = "", body: bytes | None = None) -> None:
        if body is None:
            body = json.dumps(payload).encode()
        self.send(Assign(RunId(run), JobId(f"job-{run}"), task, "cfg", body_bytes=len(body)), body)

    def ack(self, *runs: int) -> None:
        self.send(Ack(tuple(RunId(run) for run in runs)))

    def until(
        self, kind: type[M], accept: Callable[[M], bool] = lambda _: True, within_s: float = DEADLINE_S
    ) -> tuple[M, bytes | None]:
        """The next message of this kind that is accepted; messages before it are not looked at again."""
        deadline = time.monotonic() + within_s
        while True:
            while self._looked_at < len(self.received):
                got = self.received[self._looked_at]
                self._looked_at += 1
                if isinstance(got.message, kind) and accept(got.message):
                    return got.message, got.body
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms <= 0:
                raise AssertionError(f"no {kind.__name__} in {within_s} s, but {self.received[-20:]}")
            self.router.socket.poll(min(left_ms, 200))
            self.received += self.router.receive()

    def outcome_of(self, run: int) -> tuple[Any, bytes | None]:
        """The next outcome of a run."""
        return self.until(object, lambda message: getattr(message, "run", None) == run)

    def welcome(self) -> Hello:
        hello, _ = self.until(Hello)
        self.send(Welcome(heartbeat_s=self.heartbeat_s))
        return hello

    def make_ready(self) -> Ready:
        self.welcome()
        return self.until(Ready)[0]

    def stop(self, grace_s: float = 3.0) -> int:
        self.send(Stop(grace_s=grace_s))
        return self.exit_code()

    # ------------------------------------------------------------ the process

    def exit_code(self) -> int:
        return self.process.wait(DEADLINE_S)

    def rss_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def others(self) -> list[int]:
        """Pids of the rest of its process group."""
        from gpuward_executors.engines import group

        return [pid for pid in group.members(self.process.pid) if pid != self.process.pid]
