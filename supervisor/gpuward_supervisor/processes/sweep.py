"""Whose a process or a shared-memory file is, and how to be rid of it: reads /proc and /dev/shm.

Used by the supervisor and by its guardian, which has no site-packages and shall stay tiny: standard library
only, and of that only what is loaded already.
"""

from __future__ import annotations

import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Iterator
else:
    import _signal as signal  # the C module under it: without enum, functools, collections, and their 2 MiB

PROC = "/proc"
SHM = "/dev/shm"  # noqa: S108 - the kernel's fixed place, not a temporary file of ours

#: How long Python's resource trackers may take to unlink what they know of; measured: 7.5 ms, 13 at worst.
TRACKER_GRACE_S = 0.3
#: Time between two scans, in seconds: short at first, longer when memory takes its time to be torn down.
STEP_FIRST_S = 0.01
STEP_MAX_S = 0.25
#: Shared memory of unknown origin that is younger than this is left for the next sweep, in seconds.
SHM_AGE_S = 1.0

#: Names that engines' libraries give to shared memory: multiprocessing, vLLM, NCCL, torch, joblib.
_SHM_PREFIXES = ("psm_", "sem.mp-", "vllm", "VLLM", "nccl-", "torch_", "sem.loky-")
_TRACKER = b"multiprocessing.resource_tracker"

#: Inodes of the initial namespaces (Linux, ``proc_ns.h``).
_INITIAL_IPC = "ipc:[4026531839]"
_INITIAL_PID = "pid:[4026531836]"


class Proc:
    """One process at the moment of a scan."""

    __slots__ = ("environ", "pgrp", "pid", "ppid", "session", "start", "state")

    def __init__(self, pid: int, ppid: int, pgrp: int, session: int, state: str, start: int) -> None:
        self.pid = pid
        self.ppid = ppid
        self.pgrp = pgrp
        self.session = session
        #: One letter as in ``ps``.
        self.state = state
        #: Start time in clock ticks since boot; with the pid it names the process beyond the reuse of pids.
        self.start = start
        #: The environment it was started with; empty when it may not be read.
        self.environ = b""

    @property
    def dead(self) -> bool:
        """True for a zombie: it runs nothing and holds nothing."""
        return self.state in "ZXx"

    def carries(self, entry: bytes) -> bool:
        """Whether ``NAME=value`` is an entry of its environment."""
        return entry in self.environ and entry in self.environ.split(b"\0")

    def value(self, name: bytes) -> bytes | None:
        """Value of an environment variable, None without it."""
        if name not in self.environ:
            return None
        for entry in self.environ.split(b"\0"):
            key, found, value = entry.partition(b"=")
            if found and key == name:
                return value
        return None


def read_proc(pid: int) -> Proc | None:
    """Status of one process without its environment; None when there is no such process."""
    try:
        line = _read(f"{PROC}/{pid}/stat")
    except OSError:
        return None
    # The name in parentheses may itself contain blanks and parentheses.
    fields = line[line.rindex(b")") + 2 :].split()
    return Proc(pid, int(fields[1]), int(fields[2]), int(fields[3]), fields[0].decode(), int(fields[19]))


def scan() -> list[Proc]:
    """All living processes with their environments; our own is left out."""
    own = os.getpid()
    found = []
    for name in os.listdir(PROC):
        if not name.isdigit() or int(name) == own:
            continue
        proc = read_proc(int(name))
        if proc is None or proc.dead:
            continue
        try:
            proc.environ = _read(f"{PROC}/{name}/environ")
        except OSError:  # another user's, or gone in this moment
            pass
        found.append(proc)
    return found


def children_of(pid: int) -> list[int]:
    """Pids of the children of a process, zombies included."""
    children = []
    try:
        for task in os.listdir(f"{PROC}/{pid}/task"):
            children += [int(child) for child in _read(f"{PROC}/{pid}/task/{task}/children").split()]
    except OSError:  # kernels without CONFIG_PROC_CHILDREN: ten times as slow
        pids = [int(name) for name in os.listdir(PROC) if name.isdigit()]
        children = [proc.pid for proc in map(read_proc, pids) if proc is not None and proc.ppid == pid]
    return children


def is_tracker(pid: int) -> bool:
    """Whether a process is Python's resource tracker, which unlinks the shared memory of its tree."""
    try:
        return _TRACKER in _read(f"{PROC}/{pid}/cmdline")
    except OSError:
        return False


def lives(proc: Proc) -> bool:
    """Whether this very process still runs."""
    now = read_proc(proc.pid)
    return now is not None and now.start == proc.start and not now.dead


def send_signal(proc: Proc, number: int) -> bool:
    """Signal this very process, never one that got its pid meanwhile; False when it is gone or not ours."""
    try:
        pidfd = os.pidfd_open(proc.pid)
    except ProcessLookupError:
        return False
    except OSError:  # an old container profile forbids the call, or no descriptor is free
        pidfd = -1
    try:
        # After the descriptor was opened: what has the right start time now is what the descriptor names.
        if not lives(proc):
            return False
        if pidfd >= 0:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(proc.pid, number)
    except OSError:
        return False
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return True


class Extermination:
    """The end of a set of processes, in steps: all but the trackers, the trackers, then twice nothing found.

    Trackers are spared first because they unlink the shared memory of the processes that were killed; they
    leave by themselves once those are gone. Two empty scans, because a scan is no snapshot: a process that
    was forked behind its back is found by the second one.
    """

    def __init__(self, now_s: float) -> None:
        #: When the next step is due.
        self.due_s = now_s
        #: True when nothing is left.
        self.done = False
        #: Distinct processes that were signalled.
        self.killed: set[tuple[int, int]] = set()
        self._alive: list[Proc] = []
        self._trackers_until_s: float | None = None
        self._empty = 0
        self._step_s = STEP_FIRST_S

    @property
    def survivors(self) -> list[Proc]:
        """Who was still alive at the last step."""
        return self._alive

    @property
    def needs_scan(self) -> bool:
        """Whether the next ``step`` wants a fresh list; otherwise it looks at those it knows."""
        return not any(lives(proc) for proc in self._alive)

    def step(self, members: list[Proc] | None, now_s: float) -> None:
        """Go one step on.

        Args:
            members: the living members of the set by a scan made now; None while those of the last scan live.
            now_s: monotonic seconds.
        """
        if members is None:
            members = [proc for proc in self._alive if lives(proc)]
        self._alive = members
        if not members:
            self._empty += 1
            self.done = self._empty >= 2
            self.due_s = now_s + STEP_FIRST_S
            return
        self._empty = 0
        others = [proc for proc in members if not is_tracker(proc.pid)]
        if others:
            self._trackers_until_s = None
            self._kill(others)
        else:
            if self._trackers_until_s is None:
                self._trackers_until_s = now_s + TRACKER_GRACE_S
            if now_s >= self._trackers_until_s:
                self._kill(members)
        self.due_s = now_s + self._step_s
        self._step_s = min(self._step_s * 1.5, STEP_MAX_S)

    def _kill(self, procs: list[Proc]) -> None:
        for proc in procs:
            # Repeated for those that were told before: harmless, and it costs two system calls.
            if send_signal(proc, signal.SIGKILL):
                self.killed.add((proc.pid, proc.start))


def exterminate(
    belongs: Callable[[Proc], bool], within_s: float, tidy: Callable[[], None] | None = None
) -> Extermination:
    """Kill every process of a set, blocking, until none is left or the time is over.

    Args:
        belongs: whether a process is in the set; must not hold for the caller's own helpers.
        within_s: longest time to spend, in seconds.
        tidy: called after each step, for example to reap zombies.

    Returns:
        What was done; ``done`` is False when some would not die (a process inside a stuck driver call).
    """
    now_s = time.monotonic()
    until_s = now_s + within_s
    ending = Extermination(now_s)
    while True:
        members = [proc for proc in scan() if belongs(proc)] if ending.needs_scan else None
        ending.step(members, now_s)
        if tidy is not None:
            tidy()
        if ending.done or now_s >= until_s:
            return ending
        time.sleep(max(0.0, ending.due_s - time.monotonic()))
        now_s = time.monotonic()


# ---------------------------------------------------------------- shared memory


def shm_names_of(procs: Iterable[Proc]) -> set[str]:
    """Names below /dev/shm that these living processes map or hold open."""
    names: set[str] = set()
    for proc in procs:
        names |= _shm_held(proc.pid)
    return names


def sees_all_users_of_shm() -> bool:
    """False where /dev/shm is the host's while we see only our container's processes (``--ipc=host``).

    There, what no visible process holds may well be in use by an invisible one.
    """
    try:
        ipc, pid = os.readlink(f"{PROC}/self/ns/ipc"), os.readlink(f"{PROC}/self/ns/pid")
    except OSError:
        return False
    return ipc != _INITIAL_IPC or pid == _INITIAL_PID


def stale_shm(attributed: set[str], since_s: float, now_s: float) -> tuple[set[str], bool]:
    """Shared-memory files that may go, provided that nobody holds them.

    Args:
        attributed: names that the dead tree is known to have held.
        since_s: wall-clock time of our own start; older files are not ours.
        now_s: wall-clock time.

    Returns:
        The candidates, and whether some are only too young yet.
    """
    candidates: set[str] = set()
    young = False
    uid = os.getuid()
    guess = sees_all_users_of_shm()
    try:
        names = os.listdir(SHM)
    except OSError:
        return set(), False
    for name in names:
        known = name in attributed
        if not known and not (guess and name.startswith(_SHM_PREFIXES)):
            continue
        try:
            status = os.lstat(f"{SHM}/{name}")
        except OSError:
            continue
        # ctime, not mtime: a mapping does not touch it, and nobody can set it back.
        if not stat.S_ISREG(status.st_mode) or status.st_uid != uid or status.st_ctime < since_s:
            continue
        if known or now_s - status.st_ctime >= SHM_AGE_S:
            candidates.add(name)
        else:
            young = True
    return candidates, young


def unheld_shm(candidates: set[str]) -> set[str]:
    """Those of the candidates that no living process maps or holds open."""
    left = set(candidates)
    for name in os.listdir(PROC):
        if not left:
            break
        if name.isdigit():
            left -= _shm_held(int(name))
    return left


def remove_shm(names: Iterable[str]) -> list[str]:
    """Unlink files below /dev/shm; returns those that are gone by it."""
    removed = []
    for name in names:
        try:
            os.unlink(f"{SHM}/{name}")
        except OSError:
            continue
        removed.append(name)
    return removed


def _shm_held(pid: int) -> set[str]:
    names: set[str] = set()
    prefix = f"{SHM}/".encode()
    try:
        maps = _read(f"{PROC}/{pid}/maps")
    except OSError:
        maps = b""
    if prefix in maps:
        for line in maps.splitlines():
            _, found, rest = line.partition(prefix)
            if found:
                names.add(os.fsdecode(rest.removesuffix(b" (deleted)")))
    try:
        with os.scandir(f"{PROC}/{pid}/fd") as descriptors:
            for descriptor in descriptors:
                try:
                    target = os.readlink(descriptor.path)
                except OSError:
                    continue
                if target.startswith(f"{SHM}/"):
                    names.add(target.removeprefix(f"{SHM}/").removesuffix(" (deleted)"))
    except OSError:
        pass
    return names


# ---------------------------------------------------------------- folders


def remove_tree(path: str) -> Iterator[None]:
    """Remove a folder and all in it, one entry per step; links are removed, never followed.

    What cannot be removed is left without a word: the caller looks whether the folder is gone.
    """
    try:
        entries = list(os.scandir(path))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from remove_tree(entry.path)
        else:
            try:
                os.unlink(entry.path)
            except OSError:
                pass
        yield
    try:
        os.rmdir(path)
    except OSError:
        pass


def _read(path: str) -> bytes:
    # Not open(): it costs three times as much, and a scan reads two files of every process.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
