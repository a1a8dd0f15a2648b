"""Signals as something to poll: a descriptor that turns readable, and the numbers that came."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

#: Signals that the loop wants to know of. As PID 1 none of them has a default action: each needs a handler.
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)


class Signals:
    """Catches signals for the loop; one per process, made in the main thread.

    SIGPIPE is ignored, and SIGUSR2 writes the stacks of all threads to standard error, also while the
    interpreter is stuck in C code.
    """

    def __init__(self) -> None:
        """Install the handlers.

        Raises:
            ValueError: not in the main thread.
        """
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[signal.Signals, Any] = {}
        # The interpreter writes the number into the pipe from its C handler: nothing is lost between a
        # handler in Python and the poll, which is the race that a flag would have.
        self._wakeup_before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in WATCHED:
            self._before[number] = signal.signal(number, _note)
        self._before[signal.SIGPIPE] = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._dumps = False
        stderr = sys.__stderr__
        if stderr is not None:
            with suppress(OSError, ValueError):  # it may be no file any more
                faulthandler.register(signal.SIGUSR2, file=stderr, all_threads=True)
                self._dumps = True

    def fileno(self) -> int:
        """Descriptor that polls readable when signals have come."""
        return self._read_fd

    def take(self) -> list[signal.Signals]:
        """The signals that came since the last call, in order; several SIGCHLD may come as one."""
        numbers = b""
        with suppress(BlockingIOError):
            while part := os.read(self._read_fd, 4096):
                numbers += part
        return [signal.Signals(number) for number in numbers if number in self._before]

    def close(self) -> None:
        """Put back the handlers that were there before."""
        if self._write_fd < 0:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._dumps:
            faulthandler.unregister(signal.SIGUSR2)
        os.close(self._read_fd)
        os.close(self._write_fd)
        self._write_fd = -1


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: that there is a handler is what makes the interpreter write into the pipe."""
