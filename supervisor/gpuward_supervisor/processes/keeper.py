"""The guardian as the host keeps it: started, watched, started again when it dies, sent home at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from gpuward_supervisor.processes import guardian

#: A guardian that lived shorter than this is started again only after as long, in seconds.
RESTART_S = 1.0
#: How long the guardian may take to leave when it is sent home, in seconds.
LEAVE_S = 2.0
#: What an interpreter may need to start; no tag of ours and no secret is among it.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONHOME")


class GuardianKeeper:
    """Keeps one guardian alive for as long as the supervisor lives."""

    def __init__(self, tag: str, runtime_dir: Path, inherited_fds: Sequence[int], now_s: float) -> None:
        """Start it.

        Args:
            tag: environment entry of everything it has to kill.
            runtime_dir: folder it has to remove.
            inherited_fds: descriptors it shall hold, for example the lock of the state directory.
            now_s: monotonic seconds.
        """
        self._argv = [sys.executable, "-I", "-S", guardian.__file__, tag, str(runtime_dir), str(time.time())]
        self._inherited_fds = tuple(inherited_fds)
        # Only the supervisor holds the write end: its death, and nothing else, is end-of-file.
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = now_s
        self._log = structlog.get_logger("gpuward")
        #: When ``restart`` has to be called; None while a guardian lives.
        self.due_s: float | None = None
        self.restart(now_s)

    @property
    def pid(self) -> int | None:
        """Pid of the living guardian."""
        return None if self._process is None else self._process.pid

    def restart(self, now_s: float) -> None:
        """Start a guardian if there is none."""
        if self._process is not None:
            return
        self._started_s = now_s
        self.due_s = None
        try:
            self._process = subprocess.Popen(
                self._argv,
                stdin=self._read_fd,
                stdout=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                cwd="/",
                pass_fds=self._inherited_fds,
                start_new_session=True,
            )
        except OSError as error:
            self.due_s = now_s + RESTART_S
            self._log.error("guardian.not_started", error=str(error), retry_s=RESTART_S)

    def exited(self, now_s: float) -> bool:
        """Whether the guardian has died, which is noticed here; call it when its descriptor says so."""
        if self._process is None or self._process.poll() is None:
            return False
        self._log.error("guardian.died", pid=self._process.pid, returncode=self._process.returncode)
        self._process = None
        lived_s = now_s - self._started_s
        self.due_s = now_s if lived_s >= RESTART_S else now_s + RESTART_S
        return True

    def dismiss(self) -> None:
        """Send the guardian home: the supervisor has cleaned up by itself. Blocks until it has left."""
        if self._write_fd < 0:
            return
        if self._process is not None:
            with suppress(BrokenPipeError):
                os.write(self._write_fd, b"q")
            try:
                self._process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None
        os.close(self._write_fd)
        os.close(self._read_fd)
        self._write_fd = -1
