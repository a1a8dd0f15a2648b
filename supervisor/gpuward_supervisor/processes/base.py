"""What the loop asks of a process host, and what a host tells: starts, ends, output. No system call here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from gpuward_ipc.types import ExecutorName, Incarnation


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """How to start the process of one incarnation."""

    executor: ExecutorName
    incarnation: Incarnation
    argv: tuple[str, ...]
    #: Whole environment; the host adds the variables of ``gpuward_ipc.endpoints`` that only it knows.
    env: Mapping[str, str]
    #: Folder of this incarnation alone, which exists; removed with everything in it after the death.
    work_dir: Path | None = None
    #: Working directory of the process; ``work_dir`` when None.
    cwd: Path | None = None


class OutputLine(msgspec.Struct, frozen=True):
    """A line that an incarnation, or a descendant with its output, wrote."""

    executor: ExecutorName
    incarnation: Incarnation
    text: str


class Exit(msgspec.Struct, frozen=True):
    """The process of an incarnation is gone, and the rest of its group was told to die."""

    executor: ExecutorName
    incarnation: Incarnation
    pid: int
    #: None when a signal ended it.
    exit_code: int | None
    #: None when it ended by itself.
    signal: int | None


class Swept(msgspec.Struct, frozen=True):
    """Nothing of an incarnation is left: processes, shared memory, its folder."""

    executor: ExecutorName
    incarnation: Incarnation
    #: Processes that had left the group or came up after its kill, and were killed one by one.
    leftovers: int


ProcessEvent = OutputLine | Exit | Swept


class ProcessHost(Protocol):
    """Starts executors, watches them, and leaves nothing of them behind. One thread owns a host."""

    def spawn(self, launch: Launch) -> int:
        """Start an incarnation; returns its pid.

        Raises:
            OSError: it could not be started.
        """

    def kill(self, executor: ExecutorName, incarnation: Incarnation) -> None:
        """Kill an incarnation and its tree now; unknown or dead ones are ignored."""

    def terminate(self, executor: ExecutorName, incarnation: Incarnation) -> None:
        """Send SIGTERM to the process of an incarnation; unknown or dead ones are ignored."""

    def pid_of(self, executor: ExecutorName, incarnation: Incarnation) -> int | None:
        """Pid of a living incarnation, None for others."""

    def tail(self, executor: ExecutorName, incarnation: Incarnation) -> Sequence[str]:
        """The last lines of output of an incarnation, oldest first; kept until the executor's next start."""

    def fileno(self) -> int:
        """One descriptor that polls readable whenever ``collect`` has something to do."""

    def collect(self, now_s: float) -> list[ProcessEvent]:
        """Everything that happened; call it when ``fileno`` is readable or ``next_deadline`` has come.

        Args:
            now_s: monotonic seconds.
        """

    def next_deadline(self) -> float | None:
        """When ``collect`` has to be called even if nothing is readable; None for not at all."""

    def kill_all(self, within_s: float) -> int:
        """Kill everything that was started, blocking; returns how many would not die."""

    def close(self) -> None:
        """Let go of everything; the last call. Whatever still runs is killed."""
