"""One child process: spawned through the launcher, its output read, its exit noticed in milliseconds."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from gpuward_executors.engines.output import EngineOutput

LAUNCHER = Path(__file__).with_name("launch.py")


class ProcessExit(msgspec.Struct, frozen=True):
    """How a process ended."""

    #: None when a signal ended it, or when nobody knows.
    exit_code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        """Read after "the engine …"."""
        if self.signal is not None:
            try:
                name = signal.Signals(self.signal).name
            except ValueError:
                name = "unnamed"
            return f"was ended by signal {self.signal} ({name})"
        if self.exit_code is None:
            return "ended, nobody knows how"
        return f"exited with code {self.exit_code}"


class EngineProcess:
    """A process in this executor's own group; spawn it from the main thread (parent-death signal)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        on_line: Callable[[str], None],
        on_exit: Callable[[ProcessExit], None],
    ) -> None:
        """Spawn it.

        Args:
            loop: notices output and exit.
            argv: the command; looked up on the ``PATH`` of ``environment``.
            environment: the whole environment of the process.
            folder: its working directory.
            on_line: takes each line of its stdout and stderr.
            on_exit: called once, after all output that was written before the exit.

        Raises:
            OSError: it cannot be spawned.
        """
        self._loop = loop
        self._on_exit = on_exit
        launch = [sys.executable, "-I", "-S", str(LAUNCHER), "--parent-pid", str(os.getpid()), "--", *argv]
        reading, writing = os.pipe()
        try:
            self._child = subprocess.Popen(
                launch,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env=dict(environment),
                cwd=folder,
                close_fds=True,
            )
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self.pid = self._child.pid
        self.output = EngineOutput(loop, reading, on_line)
        self._pidfd: int | None = None
        self._watch()

    def terminate(self) -> None:
        """Ask the process to end (TERM)."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process; its children are the group's business."""
        self._signal(signal.SIGKILL)

    @property
    def alive(self) -> bool:
        """False once its exit was noticed."""
        return self._child.returncode is None

    def _signal(self, number: signal.Signals) -> None:
        # Safe by pid: until we have reaped it, the number cannot belong to anybody else.
        if self.alive:
            try:
                os.kill(self.pid, number)
            except OSError:
                pass  # it has ended, its exit is about to be noticed

    def _watch(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            # An old kernel or a strict sandbox. A thread that waits is the portable way.
            threading.Thread(target=self._wait, name="engine-exit", daemon=True).start()
            return
        self._loop.add_reader(self._pidfd, self._pidfd_readable)

    def _pidfd_readable(self) -> None:
        if self._pidfd is None:
            return
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            self._ended(ProcessExit())
            return
        if status is None:
            return
        if status.si_code == os.CLD_EXITED:
            self._ended(ProcessExit(exit_code=status.si_status))
        else:
            self._ended(ProcessExit(signal=status.si_status))

    def _wait(self) -> None:
        try:
            _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            found = ProcessExit()
        else:
            code = os.waitstatus_to_exitcode(status)
            found = ProcessExit(exit_code=code) if code >= 0 else ProcessExit(signal=-code)
        self._loop.call_soon_threadsafe(self._ended, found)

    def _ended(self, found: ProcessExit) -> None:
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        # Popen must know, or it would try to reap the pid again and warn.
        self._child.returncode = -found.signal if found.signal is not None else (found.exit_code or 0)
        self.output.drain()
        # Orphans of the process may hold the pipe open for ever: they are not waited for.
        self.output.close()
        self._on_exit(found)
