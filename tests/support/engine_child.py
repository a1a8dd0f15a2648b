"""An engine child without its API process, for tests of the link between them."""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import Any, Self

from gpuward_executors.simulated.engine_process import READY, Settings, pack, spawn, unpack

#: Bound of every wait in seconds.
PATIENCE_S = 30.0


class EngineChild:
    """The child process and our end of its socket."""

    def __init__(self, **changes: Any) -> None:
        """Start the child.

        Args:
            changes: Settings that differ from a plain engine of two slots.
        """
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE_S)
        theirs.set_inheritable(True)
        self.pid = spawn("engine", theirs.fileno())
        self._pidfd = os.pidfd_open(self.pid)
        self._reaped = False
        self._buffer = bytearray()
        self._frames: list[Any] = []
        theirs.close()
        settings = Settings(
            model="tiny",
            slots=2,
            token_s=0.0,
            prefill_s=0.0,
            startup_s=0.0,
            startup_log=False,
            startup_fault="",
            workers=0,
            setsid_grandchild=False,
            shm_segments=[],
        )
        settings.update(changes)  # type: ignore[typeddict-item]
        self.socket.sendall(pack(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        if not self._reaped:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            except ProcessLookupError:
                # Reaped by the link under test.
                pass
        os.close(self._pidfd)

    def send(self, *commands: tuple[object, ...]) -> None:
        """Send one batch of commands."""
        self.socket.sendall(pack(list(commands)))

    def frame(self) -> Any:
        """Return the next frame; None when the child has closed the socket."""
        while not self._frames:
            data = self.socket.recv(65536)
            if not data:
                return None
            self._buffer += data
            self._frames += unpack(self._buffer)
        return self._frames.pop(0)

    def wait_ready(self) -> None:
        """Wait for the end of the start-up."""
        assert self.frame() == READY

    def is_running(self) -> bool:
        """Return whether the child has not ended yet."""
        return not select.select([self._pidfd], [], [], 0)[0]

    def exit_code(self) -> int:
        """Wait for the child's end and return its exit code, negative for a signal."""
        assert select.select([self._pidfd], [], [], PATIENCE_S)[0], "the engine child does not end"
        _, status = os.waitpid(self.pid, 0)
        self._reaped = True
        return os.waitstatus_to_exitcode(status)
