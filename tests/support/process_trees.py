"""Real trees of processes that are hard to get rid of, and what tests need to watch them."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gpuward_ipc.types import ExecutorName, Incarnation
from gpuward_supervisor.processes.base import Launch, ProcessEvent, Swept
from gpuward_supervisor.processes.posix import PosixProcessHost

#: Longest wait of a test for something that takes milliseconds.
PATIENCE_S = 30.0
GPU0 = ExecutorName("gpu0")
FIRST = Incarnation(1)

#: Leader, child in its session, and a grandchild that left it and ignores SIGTERM. Says "up" once all run.
TREE = """
import os, signal, sys, time
folder = sys.argv[1]
def settle(name):
    with open(f"{folder}/{name}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{folder}/{name}.new", f"{folder}/{name}.pid")
def stay():
    while True:
        signal.pause()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        settle("grandchild")
        stay()
    settle("child")
    stay()
settle("leader")
while len([name for name in os.listdir(folder) if name.endswith(".pid")]) < 3:
    time.sleep(0.005)
print("up", flush=True)
stay()
"""
MEMBERS = ("leader", "child", "grandchild")

#: A real multiprocessing tree: two processes, a named lock, two shared-memory segments, one resource tracker.
SHARED_MEMORY_TREE = """
import multiprocessing, os, signal, sys
from multiprocessing import resource_tracker, shared_memory
def work(names):
    mine = shared_memory.SharedMemory(create=True, size=4096)
    names.put(mine.name)
    while True:
        signal.pause()
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    names, lock = context.SimpleQueue(), context.Lock()
    mine = shared_memory.SharedMemory(create=True, size=4096)
    context.Process(target=work, args=(names,)).start()
    print("shm", mine.name, names.get(), flush=True)
    print("tracker", resource_tracker._resource_tracker._pid, flush=True)
    while True:
        signal.pause()
"""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until something is so."""
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.005)


def wait_dead(pids: Sequence[int]) -> None:
    """Poll until these processes are gone."""
    wait_until(lambda: not any(map(alive, pids)), f"the end of {pids}")


def pids_in(folder: Path) -> dict[str, int]:
    """Pids of a tree that has come up in a folder."""
    return {name: int((folder / f"{name}.pid").read_text()) for name in MEMBERS}


def python(program: str, *args: object) -> tuple[str, ...]:
    """Command line of a program without site-packages: starts in a few milliseconds."""
    return (sys.executable, "-I", "-S", "-c", program, *map(str, args))


def launch(
    argv: tuple[str, ...],
    executor: ExecutorName = GPU0,
    incarnation: Incarnation = FIRST,
    work_dir: Path | None = None,
) -> Launch:
    """A start with nothing but the command given."""
    return Launch(
        executor=executor,
        incarnation=incarnation,
        argv=argv,
        env={"PATH": os.environ.get("PATH", "")},
        work_dir=work_dir,
    )


def kill_all(pids: Iterable[int]) -> None:
    """Kill those of these processes that still run."""
    for pid in pids:
        if alive(pid):
            with suppress(ProcessLookupError):  # it may end between the look and the kill
                os.kill(pid, signal.SIGKILL)


@contextmanager
def killed_at_the_end(pids: dict[str, int]) -> Iterator[None]:
    """Let a test fail without leaving processes behind."""
    try:
        yield
    finally:
        kill_all(pids.values())


class Pump:
    """Drives a host as the loop does, and keeps what happened."""

    def __init__(self, host: PosixProcessHost) -> None:
        self.host = host
        self.happened: list[ProcessEvent] = []

    def turn(self, longest_s: float = 0.2) -> None:
        """Wait for the descriptor or the deadline, then collect."""
        due_s = self.host.next_deadline()
        wait_s = longest_s if due_s is None else min(longest_s, max(0.0, due_s - time.monotonic()))
        select.select([self.host.fileno()], [], [], wait_s)
        self.happened += self.host.collect(time.monotonic())

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Turn until something is so."""
        until_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until_s, f"waited {PATIENCE_S} s for {what}; got {self.happened}"
            self.turn()

    def until_line(self, start: str) -> str:
        """Turn until a line with this start was printed; returns it."""
        self.until(lambda: any(line.startswith(start) for line in self.lines), f"a line {start}…")
        return next(line for line in self.lines if line.startswith(start))

    def until_swept(self, count: int = 1) -> None:
        """Turn until so many incarnations have been swept."""
        self.until(lambda: len(self.of(Swept)) >= count, f"{count} sweeps")

    @property
    def lines(self) -> list[str]:
        """All lines so far."""
        return [event.text for event in self.happened if hasattr(event, "text")]

    def of(self, kind: type[ProcessEvent]) -> list[ProcessEvent]:
        """All events of a kind so far."""
        return [event for event in self.happened if type(event) is kind]
