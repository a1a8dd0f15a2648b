"""What is left of a dead incarnation, and how it is removed step by step without holding anybody up.

The order: names in /dev/shm noted → all processes killed but Python's resource trackers → those → two scans
find nobody → shared memory and folder removed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import structlog

from gpuward_supervisor.processes import sweep

#: A burial that lasts longer is reported: a process hangs in the kernel.
STUCK_AFTER_S = 10.0
#: Time that one turn spends on the removal of files, in seconds.
REMOVE_BUDGET_S = 0.005


class Tree:
    """The processes of one incarnation: its session, its group, and whoever carries its tags."""

    def __init__(self, leader_pid: int, tags: tuple[str, ...]) -> None:
        """Name the tree.

        Args:
            leader_pid: the process that was started; leads session and group of that number.
            tags: environment entries (``NAME=value``) that together mark its descendants.
        """
        self.leader_pid = leader_pid
        self._tags = tuple(tag.encode() for tag in tags)
        #: Members of the leader's group at the first look, as (pid, start); None before it.
        self.group: frozenset[tuple[int, int]] | None = None
        #: Names below /dev/shm that members held.
        self.shm: set[str] = set()

    def owns(self, proc: sweep.Proc) -> bool:
        """Whether a process is a member; the leader itself is not."""
        leader = self.leader_pid
        if proc.pid == leader:
            return False
        return leader in {proc.session, proc.pgrp} or all(proc.carries(tag) for tag in self._tags)

    def members(self, scanned: list[sweep.Proc]) -> list[sweep.Proc]:
        """The members among these processes; what can only be seen while they live is remembered."""
        members = [proc for proc in scanned if self.owns(proc)]
        self.shm |= sweep.shm_names_of(members)
        if self.group is None:
            self.group = frozenset((proc.pid, proc.start) for proc in members if proc.pgrp == self.leader_pid)
        return members

    def kill(self, scanned: list[sweep.Proc]) -> None:
        """Kill all members but the resource trackers, once."""
        for proc in self.members(scanned):
            if not sweep.is_tracker(proc.pid):
                sweep.send_signal(proc, 9)


class Burial:
    """The removal of one tree and of what it left."""

    def __init__(self, tree: Tree, work_dir: Path | None, since_s: float, now_s: float) -> None:
        """Begin.

        Args:
            tree: the processes; the leader is dead, but not reaped.
            work_dir: folder to remove; None for none.
            since_s: wall-clock time of the supervisor's start: older shared memory is not ours.
            now_s: monotonic seconds.
        """
        self._tree = tree
        self._work_dir = work_dir
        self._since_s = since_s
        self._began_s = now_s
        self._ending = sweep.Extermination(now_s)
        self._files = iter(()) if work_dir is None else sweep.remove_tree(str(work_dir))
        self._shm: set[str] | None = None
        self._reported = False
        self._log = structlog.get_logger("gpuward")
        #: When the next step is due, on the monotonic clock.
        self.due_s = now_s
        #: True once nothing is left.
        self.done = False
        #: Shared memory was seen that is too young yet to be judged.
        self.young_shm = False

    @property
    def leftovers(self) -> int:
        """Processes that had left the group, or came up after its kill, and were killed one by one."""
        return len(self._ending.killed - (self._tree.group or frozenset()))

    def step(self, scan: Callable[[], list[sweep.Proc]], now_s: float) -> None:
        """Go one step on.

        Args:
            scan: gives all living processes as they are now.
            now_s: monotonic seconds.
        """
        if not self._ending.done:
            members = self._tree.members(scan()) if self._ending.needs_scan else None
            self._ending.step(members, now_s)
            self.due_s = self._ending.due_s
            self._complain(now_s)
        elif self._shm is None:
            candidates, self.young_shm = sweep.stale_shm(self._tree.shm, self._since_s, time.time())
            self._shm = sweep.unheld_shm(candidates)
            self.due_s = now_s + sweep.STEP_FIRST_S if self._shm else now_s
        elif not self._files_are_gone():
            self.due_s = now_s
        else:
            # A second look, some time after the first: a file that changes hands is missed by one of them.
            remove_unheld(self._shm)
            if self._work_dir is not None and self._work_dir.exists():
                self._log.error("executor.folder_left", folder=str(self._work_dir))
            self.done = True

    def _files_are_gone(self) -> bool:
        until_s = time.monotonic() + REMOVE_BUDGET_S
        for _ in takewhile(lambda _: time.monotonic() < until_s, self._files):
            pass
        return time.monotonic() < until_s

    def _complain(self, now_s: float) -> None:
        if not self._reported and now_s - self._began_s >= STUCK_AFTER_S:
            self._reported = True
            self._log.error(
                "executor.will_not_die",
                pid=self._tree.leader_pid,
                processes=[f"{proc.pid} ({proc.state})" for proc in self._ending.survivors],
                consequence="its GPUs are not used again until they are gone",
            )


def remove_unheld(names: set[str]) -> None:
    """Remove those of these files in /dev/shm that nobody holds, and say so."""
    removed = sweep.remove_shm(sweep.unheld_shm(names)) if names else []
    if removed:
        structlog.get_logger("gpuward").warning("shm.swept", names=sorted(removed)[:20], count=len(removed))
