"""How an executor dies with its supervisor: parent-death signal, death pipe, whole group at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def arm_parent_death_signal() -> bool:
    """Have the kernel kill this process when its parent dies; False where the kernel refuses.

    The signal follows the parent's *thread*, so the supervisor spawns from its main thread. It kills this
    process alone: the rest of the group falls to the supervisor's guardian, or to ``kill_group``.
    """
    import ctypes

    return int(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)) == 0


def parent_is(pid: int | None) -> bool:
    """True unless the expected parent is gone already. Call after arming: only then is there no gap."""
    return pid is None or os.getppid() == pid


def watch_death_fd(loop: asyncio.AbstractEventLoop, fd: int, on_death: Callable[[], None]) -> None:
    """Call ``on_death`` when the descriptor reaches end-of-file; engines do not inherit it.

    Raises:
        OSError: it is no descriptor of this process.
    """
    os.set_inheritable(fd, False)
    os.set_blocking(fd, False)

    def look() -> None:
        try:
            if os.read(fd, 64):
                return  # nobody writes here; if somebody does, it is not the end
        except BlockingIOError:
            return
        except OSError:
            pass  # a pipe that cannot be read any more is an end as well
        loop.remove_reader(fd)
        on_death()

    loop.add_reader(fd, look)


def leads_own_group() -> bool:
    """True when this process leads its process group, as the supervisor starts it."""
    return os.getpgrp() == os.getpid()


def kill_group() -> None:
    """Kill this process and everything in its group; only itself when the group is not its own."""
    if leads_own_group():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
