"""Executors as Linux processes: each in a session of its own, watched by pidfd, buried with its tree.

A dead leader stays a zombie until its burial is over, so that its pid, which is also the id of its session,
cannot be given to another process that would be taken for one of the tree.

Everything here is non-blocking but the constructor, ``kill_all`` and ``close``. What clears its environment
*and* leaves the session cannot be found; where the supervisor is PID 1 the kernel ends that, too.

Long because one owner joins the table of children, the descriptors and the deadlines; burial, orphans, output
and the guardian have files of their own.
"""

from __future__ import annotations

import errno
import os
import resource
import secrets
import select
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from gpuward_ipc.endpoints import ENV_DEATH_FD, ENV_EXECUTOR, ENV_NODE, ENV_PARENT, identity
from gpuward_ipc.types import ExecutorName, Incarnation
from gpuward_supervisor.processes import runtime_dir as folder
from gpuward_supervisor.processes import sweep
from gpuward_supervisor.processes.base import Exit, Launch, OutputLine, ProcessEvent, Swept
from gpuward_supervisor.processes.burial import Burial, Tree, remove_unheld
from gpuward_supervisor.processes.keeper import GuardianKeeper
from gpuward_supervisor.processes.orphans import Orphans
from gpuward_supervisor.processes.output import OutputReader

#: Added to the own badness of executors and engines: when memory runs out, the kernel shall pick one of them.
OOM_SCORE_MORE = 500
#: Where pidfds are forbidden children are looked at this often, in seconds.
POLL_S = 0.05
#: Longest time that the blocking kills take, in seconds.
KILL_WITHIN_S = 5.0


class _Child:
    """One incarnation, from its start to the end of its burial."""

    def __init__(
        self, launch: Launch, process: subprocess.Popen[bytes], output: OutputReader, node_tag: str
    ) -> None:
        self.executor = launch.executor
        self.incarnation = launch.incarnation
        self.work_dir = launch.work_dir
        self.process = process
        self.pid = process.pid
        self.output = output
        tag = identity(launch.executor, launch.incarnation).decode()
        self.tree = Tree(process.pid, (f"{ENV_EXECUTOR}={tag}", node_tag))
        #: -1 where the system gives none.
        self.pidfd = -1
        #: When to look whether it lives; only without a pidfd.
        self.look_s: float | None = None
        self.burial: Burial | None = None


class PosixProcessHost:
    """The executors of one supervisor; see ``ProcessHost`` for what the methods promise."""

    def __init__(
        self,
        *,
        node: str,
        runtime_dir: Path,
        guardian_fds: Sequence[int] = (),
        with_guardian: bool = True,
    ) -> None:
        """Take hold of the node: end what an earlier supervisor left, start the guardian.

        Args:
            node: id of the state directory; the caller holds that directory's lock.
            runtime_dir: private folder for sockets and incarnations; see ``runtime_dir.prepare``.
            guardian_fds: descriptors that the guardian shall hold: the lock of the state directory.
            with_guardian: False leaves the guardian out, and with it the promise that nothing outlives a
                supervisor that was killed.

        Raises:
            OSError: the runtime folder cannot be used.
        """
        now_s = time.monotonic()
        self._owner = threading.get_ident()
        # A name for each life: a guardian must never take a successor's executors for its own.
        self._life = f"{node}.{os.getpid()}-{secrets.token_hex(4)}"
        #: Environment entry of every process of this life.
        self.tag = f"{ENV_NODE}={self._life}"
        self._runtime_dir = runtime_dir
        self._since_s = time.time()
        self._log = structlog.get_logger("gpuward")
        self._children: dict[tuple[ExecutorName, Incarnation], _Child] = {}
        self._by_fd: dict[int, _Child] = {}
        self._tails: dict[ExecutorName, tuple[Incarnation, list[str]]] = {}
        self._sessions: set[int] = set()
        self._shm_again_s: float | None = None
        self._due_s: float | None = None
        self._closed = False
        folder.prepare(runtime_dir, self.tag)
        self._end_predecessor(f"{node}.".encode())
        self._epoll = select.epoll()
        self._death_read_fd, self._death_write_fd = os.pipe2(os.O_CLOEXEC)
        self._orphans = Orphans(now_s)
        self._guardian: GuardianKeeper | None = None
        self._guardian_fd = -1
        if with_guardian:
            self._guardian = GuardianKeeper(self.tag, runtime_dir, guardian_fds, now_s)
            self._watch_guardian()
        self._plan()

    @property
    def guardian_pid(self) -> int | None:
        """Pid of the living guardian; None without one."""
        return None if self._guardian is None else self._guardian.pid

    # ------------------------------------------------------------ starting and ending

    def spawn(self, launch: Launch) -> int:
        """Start an incarnation; returns its pid.

        Raises:
            OSError: it could not be started.
        """
        # The parent-death signal follows the thread that forked, not the process: it must be one that lives
        # as long as the supervisor.
        assert threading.get_ident() == self._owner, "spawn from the thread that made the host"
        key = (launch.executor, launch.incarnation)
        assert key not in self._children, f"{key} runs already"
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        try:
            process = self._start(launch, write_fd)
        except OSError:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        os.set_blocking(read_fd, False)
        now_s = time.monotonic()
        child = _Child(launch, process, OutputReader(read_fd, now_s), self.tag)
        self._children[key] = child
        self._sessions.add(child.pid)
        self._tails.pop(launch.executor, None)
        self._watch(read_fd, child)
        try:
            child.pidfd = os.pidfd_open(child.pid)
            self._watch(child.pidfd, child)
        except OSError:  # old container profiles forbid it
            child.look_s = now_s + POLL_S
        _make_expendable(child.pid)
        self._plan()
        return child.pid

    def _start(self, launch: Launch, output_fd: int) -> subprocess.Popen[bytes]:
        env = dict(launch.env)
        env[ENV_EXECUTOR] = identity(launch.executor, launch.incarnation).decode()
        env[ENV_NODE] = self._life
        env[ENV_DEATH_FD] = str(self._death_read_fd)
        env[ENV_PARENT] = str(os.getpid())
        try:
            # No preexec_fn: it would cost vfork, and run Python between fork and exec.
            return subprocess.Popen(
                launch.argv,
                env=env,
                cwd=launch.cwd or launch.work_dir,
                stdin=subprocess.DEVNULL,
                stdout=output_fd,
                stderr=output_fd,
                pass_fds=(self._death_read_fd,),
                start_new_session=True,
            )
        except (ValueError, subprocess.SubprocessError) as error:
            raise OSError(errno.EINVAL, f"{launch.executor} cannot be started: {error}") from error

    def kill(self, executor: ExecutorName, incarnation: Incarnation) -> None:
        """Kill an incarnation and its tree now; unknown or dead ones are ignored."""
        child = self._children.get((executor, incarnation))
        if child is None or child.burial is not None:
            return
        scanned = sweep.scan()
        # The leader first: it shall not have time to tell a story about its dying engine.
        # By pid, which is its own until it is reaped; Popen would reap it here, and with it the exit status.
        os.kill(child.pid, signal.SIGKILL)
        child.tree.kill(scanned)

    def terminate(self, executor: ExecutorName, incarnation: Incarnation) -> None:
        """Send SIGTERM to the process of an incarnation; unknown or dead ones are ignored."""
        child = self._children.get((executor, incarnation))
        if child is not None and child.burial is None:
            os.kill(child.pid, signal.SIGTERM)

    def pid_of(self, executor: ExecutorName, incarnation: Incarnation) -> int | None:
        """Pid of a living incarnation, None for others."""
        child = self._children.get((executor, incarnation))
        return None if child is None or child.burial is not None else child.pid

    def tail(self, executor: ExecutorName, incarnation: Incarnation) -> Sequence[str]:
        """The last lines of output of an incarnation, oldest first; kept until the executor's next start."""
        child = self._children.get((executor, incarnation))
        if child is not None:
            return child.output.tail
        kept, lines = self._tails.get(executor, (None, []))
        return lines if kept == incarnation else []

    # ------------------------------------------------------------ what happened

    def fileno(self) -> int:
        """One descriptor that polls readable whenever ``collect`` has something to do."""
        return self._epoll.fileno()

    def next_deadline(self) -> float | None:
        """When ``collect`` has to be called even if nothing is readable; None for not at all."""
        return self._due_s

    def collect(self, now_s: float) -> list[ProcessEvent]:
        """Everything that happened; cheap when nothing did.

        Args:
            now_s: monotonic seconds.
        """
        ready = self._epoll.poll(0)
        due = self._due_s is not None and self._due_s <= now_s
        if not ready and not due:
            return []
        happened: list[ProcessEvent] = []
        ended: list[_Child] = []
        for fd, _ in ready:
            if fd == self._guardian_fd:
                self._guardian_exited(now_s)
                continue
            child = self._by_fd[fd]
            if fd == child.pidfd:
                ended.append(child)
            else:
                self._read(child, now_s, happened)
        if due:
            ended += [c for c in self._children.values() if c.look_s is not None and c.look_s <= now_s]
        for child in ended:
            self._note_exit(child, now_s, happened)
        self._go_on_burying(now_s, happened)
        if self._shm_again_s is not None and self._shm_again_s <= now_s:
            self._sweep_unattributed(now_s)
        if self._orphans.due_s <= now_s:
            self.reap_adopted(now_s)
        if self._guardian is not None and self._guardian.due_s is not None and self._guardian.due_s <= now_s:
            self._guardian.restart(now_s)
            self._watch_guardian()
        self._plan()
        return happened

    def reap_adopted(self, now_s: float) -> int:
        """Reap dead orphans that came to us, best on SIGCHLD; returns how many were reaped.

        Args:
            now_s: monotonic seconds.
        """
        own = {child.pid for child in self._children.values()}
        if self.guardian_pid is not None:
            own.add(self.guardian_pid)
        reaped = self._orphans.reap(own, self._sessions, now_s)
        self._plan()
        return reaped

    def _plan(self) -> None:
        due = [self._orphans.due_s]
        for child in self._children.values():
            if child.burial is not None:
                due.append(child.burial.due_s)
            elif child.look_s is not None:
                due.append(child.look_s)
        if self._shm_again_s is not None:
            due.append(self._shm_again_s)
        if self._guardian is not None and self._guardian.due_s is not None:
            due.append(self._guardian.due_s)
        self._due_s = min(due)

    def _read(self, child: _Child, now_s: float, happened: list[ProcessEvent]) -> None:
        lines = child.output.read(now_s)
        if child.output.ended:
            self._unwatch(child.output.fileno())
            lines += child.output.finish(now_s)
        happened += [OutputLine(child.executor, child.incarnation, text) for text in lines]

    def _watch(self, fd: int, child: _Child) -> None:
        self._by_fd[fd] = child
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._by_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # ------------------------------------------------------------ deaths

    def _note_exit(self, child: _Child, now_s: float, happened: list[ProcessEvent]) -> None:
        # WNOWAIT: the zombie keeps the pid until the burial is over.
        status = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is None:
            child.look_s = now_s + POLL_S
            return
        if not child.output.ended:
            self._read(child, now_s, happened)
        self._close_pidfd(child)
        child.look_s = None
        child.burial = Burial(child.tree, child.work_dir, self._since_s, now_s)
        by_itself = status.si_code == os.CLD_EXITED
        happened.append(
            Exit(
                child.executor,
                child.incarnation,
                child.pid,
                exit_code=status.si_status if by_itself else None,
                signal=None if by_itself else status.si_status,
            )
        )

    def _go_on_burying(self, now_s: float, happened: list[ProcessEvent]) -> None:
        scanned: list[sweep.Proc] | None = None

        def scan() -> list[sweep.Proc]:
            # One scan of /proc in a turn, however many died.
            nonlocal scanned
            if scanned is None:
                scanned = sweep.scan()
            return scanned

        for child in list(self._children.values()):
            burial = child.burial
            if burial is None or burial.due_s > now_s:
                continue
            burial.step(scan, now_s)
            if burial.done:
                self._unwatch(child.output.fileno())
                lines = child.output.finish(now_s)
                happened += [OutputLine(child.executor, child.incarnation, text) for text in lines]
                self._release(child)
                self.reap_adopted(now_s)
                if burial.young_shm:
                    self._shm_again_s = now_s + sweep.SHM_AGE_S
                happened.append(Swept(child.executor, child.incarnation, burial.leftovers))

    def _release(self, child: _Child) -> None:
        self._unwatch(child.output.fileno())
        child.output.close()
        self._close_pidfd(child)
        child.process.poll()  # reaps the leader
        self._tails[child.executor] = (child.incarnation, child.output.tail)
        del self._children[child.executor, child.incarnation]

    def _close_pidfd(self, child: _Child) -> None:
        if child.pidfd >= 0:
            self._unwatch(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = -1

    def _sweep_unattributed(self, now_s: float) -> None:
        candidates, young = sweep.stale_shm(set(), self._since_s, time.time())
        remove_unheld(sweep.unheld_shm(candidates))
        self._shm_again_s = now_s + sweep.SHM_AGE_S if young else None

    # ------------------------------------------------------------ the whole node

    def kill_all(self, within_s: float) -> int:
        """Kill everything that was started, blocking; returns how many would not die.

        Args:
            within_s: longest time to spend, in seconds.
        """
        tag = self.tag.encode()
        sessions = {child.pid for child in self._children.values()}
        held: set[str] = set()

        def belongs(proc: sweep.Proc) -> bool:
            mine = proc.session in sessions or proc.pgrp in sessions or proc.carries(tag)
            if mine:
                held.update(sweep.shm_names_of((proc,)))
            return mine

        ending = sweep.exterminate(belongs, within_s, self._reap_now)
        for child in list(self._children.values()):
            self._unwatch(child.output.fileno())
            child.output.finish(time.monotonic())
            held |= child.tree.shm
            self._release(child)
            if child.work_dir is not None:
                for _ in sweep.remove_tree(str(child.work_dir)):
                    pass
        candidates, young = sweep.stale_shm(held, self._since_s, time.time())
        remove_unheld(sweep.unheld_shm(candidates))
        if young:
            self._shm_again_s = time.monotonic() + sweep.SHM_AGE_S
        self._plan()
        return 0 if ending.done else len(ending.survivors)

    def _reap_now(self) -> None:
        self.reap_adopted(time.monotonic())

    def close(self) -> None:
        """Let go of everything; the last call. Whatever still runs is killed, blocking."""
        if self._closed:
            return
        self._closed = True
        self.kill_all(KILL_WITHIN_S)
        while self._shm_again_s is not None:  # shared memory that is too young yet to be judged: a second
            time.sleep(max(0.0, self._shm_again_s - time.monotonic()))
            self._sweep_unattributed(time.monotonic())
        folder.remove(self._runtime_dir, self.tag)
        self._unwatch_guardian()
        if self._guardian is not None:
            self._guardian.dismiss()
        self._reap_now()
        self._orphans.close()
        self._epoll.close()
        os.close(self._death_write_fd)
        os.close(self._death_read_fd)

    def _end_predecessor(self, node: bytes) -> None:
        """Kill what carries the tag of an earlier life; its guardian has usually done that."""
        name, life = ENV_NODE.encode(), self._life.encode()

        def belongs(proc: sweep.Proc) -> bool:
            value = proc.value(name)
            return value is not None and value != life and value.startswith(node)

        ending = sweep.exterminate(belongs, KILL_WITHIN_S)
        if ending.killed or not ending.done:
            self._log.warning("predecessor.swept", killed=len(ending.killed), left=len(ending.survivors))

    # ------------------------------------------------------------ the guardian

    def _watch_guardian(self) -> None:
        pid = self.guardian_pid
        if pid is not None:
            with suppress(OSError):  # without pidfds its death goes unnoticed; nothing else depends on it
                self._guardian_fd = os.pidfd_open(pid)
                self._epoll.register(self._guardian_fd, select.EPOLLIN)

    def _unwatch_guardian(self) -> None:
        if self._guardian_fd >= 0:
            self._epoll.unregister(self._guardian_fd)
            os.close(self._guardian_fd)
            self._guardian_fd = -1

    def _guardian_exited(self, now_s: float) -> None:
        assert self._guardian is not None
        if self._guardian.exited(now_s):
            self._unwatch_guardian()


def _make_expendable(pid: int) -> None:
    """No core dumps of tens of gigabytes, and the first choice when memory runs out. Best effort."""
    with suppress(OSError, ValueError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, hard))
    with suppress(OSError, ValueError):
        path = Path(f"/proc/{pid}/oom_score_adj")
        path.write_text(str(min(1000, int(path.read_text()) + OOM_SCORE_MORE)))
