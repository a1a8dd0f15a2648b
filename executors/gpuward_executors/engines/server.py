"""An engine that is a server process: started, awaited, watched, measured, stopped."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpuward_executors.core.events import (
    EngineAdvanced,
    EngineAnswered,
    EngineEnded,
    EngineHealth,
    EngineStarted,
)
from gpuward_executors.engines import group
from gpuward_executors.engines.base import Report
from gpuward_executors.engines.environment import (
    TEMPORARY_PATH_MAX_BYTES,
    engine_environment,
    make_temporary,
)
from gpuward_executors.engines.phases import level_of, phase_of, telling_lines
from gpuward_executors.engines.process import EngineProcess, ProcessExit
from gpuward_executors.engines.readiness import Http, health, until_ready
from gpuward_executors.logs import Logs
from gpuward_executors.tasks import raise_failure
from gpuward_ipc.startup import EngineKind, EngineSpec

#: Exit codes of the launcher: the command cannot be executed, or is not there.
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127
#: Exit code of programs that do not understand their command line.
_USAGE = 2


class ServerEngine:
    """One server process and what is known of it."""

    def __init__(
        self,
        spec: EngineSpec,
        argv: Sequence[str],
        *,
        loop: asyncio.AbstractEventLoop,
        http: Http,
        open_http: Callable[[], None],
        logs: Logs,
        environ: Mapping[str, str],
        work_dir: Path,
    ) -> None:
        """Prepare; nothing starts yet.

        Args:
            spec: what to start.
            argv: its command line.
            loop: the event loop of the executor.
            http: asks the server.
            open_http: makes ``http`` usable; called while the process starts.
            logs: takes the server's output.
            environ: environment of the executor.
            work_dir: folder of this incarnation.
        """
        self._spec = spec
        self._argv = list(argv)
        self._loop = loop
        self._http = http
        self._open_http = open_http
        self._logs = logs
        self._environ = environ
        self._work_dir = work_dir
        self._report: Report | None = None
        self._process: EngineProcess | None = None
        self._readiness: asyncio.Task[None] | None = None
        self._kill_timer: asyncio.TimerHandle | None = None
        self._ready = False
        self._phase = ""
        #: True once its end was asked for.
        self._stopping = False

    @property
    def pid(self) -> int:
        """Pid of the server; 0 before its start."""
        return self._process.pid if self._process is not None else 0

    def start(self, report: Report) -> None:
        """Spawn the server and wait for it in the background."""
        self._report = report
        taken = _taken(self._spec.host, self._spec.port)
        if taken:
            self._end(EngineEnded(detail=taken))
            return
        try:
            temporary = make_temporary(self._work_dir)
            if len(str(temporary).encode()) > TEMPORARY_PATH_MAX_BYTES:
                self._logs.log("warning", "engine.temporary_path_long", {"path": str(temporary)})
            self._process = EngineProcess(
                self._loop,
                self._argv,
                environment=engine_environment(self._environ, temporary),
                folder=self._work_dir,
                on_line=self._on_line,
                on_exit=self._on_exit,
            )
        except OSError as error:
            self._end(EngineEnded(detail=f"the engine could not be started in {self._work_dir}: {error}"))
            return
        self._logs.log("info", "engine.started", {"pid": self.pid, "command": self._argv[0]})
        report(EngineStarted(pid=self.pid))
        self._open_http()
        self._readiness = self._loop.create_task(self._await_ready())
        self._readiness.add_done_callback(raise_failure)

    def stop(self, grace_s: float) -> None:
        """Ask the server to end, kill it after ``grace_s`` seconds; 0 kills at once."""
        self._stopping = True
        if self._process is None or not self._process.alive:
            self._end(EngineEnded(detail="the engine was not running"))
            return
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        if grace_s <= 0:
            self.kill()
            return
        self._process.terminate()
        self._kill_timer = self._loop.call_later(grace_s, self.kill)

    def kill(self) -> None:
        """Kill the server and all its children in this group."""
        self._stopping = True
        if self._process is None:
            self._end(EngineEnded(detail="the engine was not running"))
            return
        self._process.kill()
        group.kill(group.others_in_own_group())

    async def probe(self) -> EngineHealth:
        """Look at its health once; dead when its process is."""
        if self._process is None or not self._process.alive:
            return EngineHealth.DEAD
        return await health(self._http, self._spec.health_path)

    def rss_bytes(self) -> int:
        """Resident memory of everything in this process group but this process."""
        if self._process is None:
            return 0
        return group.rss_bytes(group.others_in_own_group() or [self._process.pid])

    async def _await_ready(self) -> None:
        answered = await until_ready(self._http, self._spec.health_path)
        self._ready = True
        name = self._spec.served_model_name
        if answered.models and name not in answered.models:
            # Requests will carry a name that it does not know; say so before the first job fails.
            facts = {"expected": name, "listed": ", ".join(answered.models)[:200]}
            self._logs.log("warning", "engine.model_not_listed", facts)
        if self._report is not None:
            self._report(EngineAnswered(engine_version=answered.version))

    def _on_line(self, line: str) -> None:
        self._logs.relay(level_of(line), line)
        if self._ready:
            return
        phase = phase_of(line)
        if phase is not None and phase != self._phase and self._report is not None:
            self._phase = phase
            self._report(EngineAdvanced(phase=phase))

    def _on_exit(self, found: ProcessExit) -> None:
        if self._readiness is not None:
            self._readiness.cancel()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        if self._stopping:
            # What a killed server leaves behind would hold the GPU.
            group.kill(group.others_in_own_group())
        self._end(
            EngineEnded(
                exit_code=found.exit_code,
                signal=found.signal,
                detail=self._story(found),
                permanent=self._hopeless(found),
            )
        )

    def _hopeless(self, found: ProcessExit) -> bool:
        if self._ready or self._stopping:
            return False
        if found.exit_code in {_NOT_EXECUTABLE, _NOT_FOUND}:
            return True
        return found.exit_code == _USAGE and self._spec.kind is not EngineKind.COMMAND

    def _story(self, found: ProcessExit) -> str:
        when = "" if self._ready or self._stopping else " before it was ready"
        story = f"the engine {found}{when}"
        if self._process is not None:
            said = telling_lines(self._process.output.last)
            if said:
                story += f"; it said: {said}"
        if self._hopeless(found):
            if found.exit_code == _USAGE:
                return f"{story}; correct the engine's arguments"
            return f"{story}; install {self._argv[0]!r} or correct the engine's command"
        return story

    def _end(self, event: EngineEnded) -> None:
        report, self._report = self._report, None
        if report is not None:
            report(event)


def _taken(host: str, port: int) -> str:
    """A sentence when somebody listens on the engine's port already, else nothing.

    Without this look, a server left over from another life would answer the health check, and jobs would
    go to a stranger.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Servers set this too: connections of an earlier server in TIME_WAIT do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"port {port} on {host} is used by another process; stop it or choose another port_base"
                )
            if error.errno in {errno.EADDRNOTAVAIL, errno.EACCES}:
                return f"the engine cannot listen on {host} port {port}: {os.strerror(error.errno)}"
            # Anything else is for the server to find out and say.
    return ""
