"""The process group that an executor shares with its engine: who is in it, how much memory, and its end."""

from __future__ import annotations

import os
import signal

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def members(group: int) -> list[int]:
    """Pids of all living processes in a process group."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue  # it has ended since
        # The second field, the name, may hold spaces and brackets; the last bracket ends it.
        fields = stat[stat.rindex(b")") + 2 :].split()
        if int(fields[2]) == group and fields[0] not in {b"Z", b"X"}:
            found.append(int(name))
    return found


def rss_bytes(pids: list[int]) -> int:
    """Resident memory of these processes, in bytes; memory that they share counts for each."""
    pages = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                pages += int(file.read().split()[1])
        except (OSError, IndexError):
            continue  # it has ended since
    return pages * _PAGE_BYTES


def others_in_own_group() -> list[int]:
    """Everybody else in this process's group; nobody when this process does not lead it."""
    me = os.getpid()
    if os.getpgrp() != me:
        return []
    return [pid for pid in members(me) if pid != me]


def kill(pids: list[int]) -> None:
    """Kill these processes, resource trackers excepted; those that are gone are no error.

    A tracker unlinks the shared memory of the process that it belongs to once that is dead, and ends by
    itself: killed with the rest, it would leave the memory behind.
    """
    for pid in pids:
        if _is_resource_tracker(pid):
            continue
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


def _is_resource_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"multiprocessing.resource_tracker" in file.read()
    except OSError:
        return False
