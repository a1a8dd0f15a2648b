"""Orphans of our descendants: they come to us, and are reaped without taking anybody's exit status away."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

from gpuward_supervisor.processes import sweep

#: An orphan of unknown origin is reaped after this, in seconds: whoever started it may want its status.
STRANGER_AGE_S = 0.5
#: Longest time between two looks, in seconds, when no SIGCHLD calls for one.
LOOK_EVERY_S = 5.0

_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37


class Orphans:
    """Dead orphans that have to be reaped."""

    def __init__(self, now_s: float) -> None:
        """Let orphans come to this process, also when it is not PID 1.

        Args:
            now_s: monotonic seconds.
        """
        self._subreaper_before = _subreaper(1)
        self._strangers: dict[int, float] = {}
        #: When ``reap`` is to be called, on the monotonic clock.
        self.due_s = now_s + LOOK_EVERY_S

    def reap(self, own: set[int], sessions: set[int], now_s: float) -> int:
        """Reap dead orphans; returns how many.

        Never ``waitpid(-1)``: that would steal the exit status of a child from whoever started it.

        Args:
            own: children whose status somebody waits for.
            sessions: sessions that only orphans can be members of, their leaders being ``own``.
            now_s: monotonic seconds.
        """
        strangers: dict[int, float] = {}
        reaped = 0
        for pid in sweep.children_of(os.getpid()):
            proc = None if pid in own else sweep.read_proc(pid)
            if proc is None or not proc.dead:
                continue
            first_s = self._strangers.get(pid, now_s)
            # Outside the known sessions it may be a child of some other part of this program, which gets
            # time to collect it.
            if proc.session in sessions or now_s - first_s >= STRANGER_AGE_S:
                with suppress(ChildProcessError):
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
                    reaped += 1
            else:
                strangers[pid] = first_s
        self._strangers = strangers
        self.due_s = min(
            (first_s + STRANGER_AGE_S for first_s in strangers.values()), default=now_s + LOOK_EVERY_S
        )
        return reaped

    def close(self) -> None:
        """Leave orphans to whoever got them before."""
        _subreaper(self._subreaper_before)


def _subreaper(wanted: int) -> int:
    """Make orphans of our descendants come to us (1) or not (0); returns what was set before."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    # PID 1 gets them anyway; an error here only means that they go to init, which reaps them, too.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, wanted, 0, 0, 0)
    return before.value
