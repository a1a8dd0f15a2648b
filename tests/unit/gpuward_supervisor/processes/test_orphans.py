from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from gpuward_supervisor.processes import sweep
from gpuward_supervisor.processes.orphans import LOOK_EVERY_S, STRANGER_AGE_S, Orphans
from support.process_trees import python, wait_until

#: Says the pid of a grandchild and leaves it behind; the grandchild ends when it may.
PARENT = """
import os, signal, sys
read_fd, write_fd = os.pipe()
if os.fork() == 0:
    if sys.argv[1] == "setsid":
        os.setsid()
    os.write(write_fd, b"%d" % os.getpid())
    os.close(1)
    signal.pause()
print(os.read(read_fd, 20).decode(), flush=True)
"""


@pytest.fixture
def orphans() -> Iterator[Orphans]:
    orphans = Orphans(now_s=0.0)
    yield orphans
    orphans.close()


def dead_orphan(mode: str) -> tuple[int, int]:
    """Pid of a zombie that came to us, and of its parent's session."""
    with subprocess.Popen(python(PARENT, mode), stdout=subprocess.PIPE, start_new_session=True) as parent:
        output, _ = parent.communicate()
    pid = int(output)
    wait_until(lambda: pid in sweep.children_of(os.getpid()), "the adoption")
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid, parent.pid


def is_zombie(pid: int) -> bool:
    proc = sweep.read_proc(pid)
    return proc is not None and proc.dead


def test_an_orphan_of_a_known_session_is_reaped_at_once(orphans: Orphans) -> None:
    pid, session = dead_orphan("stay")
    assert orphans.reap(own=set(), sessions={session}, now_s=1.0) >= 1
    assert not is_zombie(pid)


def test_an_orphan_of_unknown_origin_is_reaped_after_a_while(orphans: Orphans) -> None:
    pid, session = dead_orphan("setsid")
    orphans.reap(own=set(), sessions={session}, now_s=1.0)
    assert orphans.due_s == 1.0 + STRANGER_AGE_S
    assert is_zombie(pid)
    assert orphans.reap(own=set(), sessions={session}, now_s=1.0 + STRANGER_AGE_S) >= 1
    assert not is_zombie(pid)
    assert orphans.due_s == 1.0 + STRANGER_AGE_S + LOOK_EVERY_S


def test_the_exit_status_of_a_child_is_left_to_whoever_started_it(orphans: Orphans) -> None:
    with subprocess.Popen(["sh", "-c", "exit 7"]) as own, subprocess.Popen(["sh", "-c", "exit 8"]) as other:
        for child in (own, other):
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        orphans.reap(own={own.pid}, sessions=set(), now_s=1.0)
        assert other.wait() == 8
        orphans.reap(own={own.pid}, sessions=set(), now_s=100.0)
        assert own.wait() == 7


def test_living_orphans_are_let_live(orphans: Orphans) -> None:
    with subprocess.Popen(python(PARENT, "stay"), stdout=subprocess.PIPE, start_new_session=True) as parent:
        output, _ = parent.communicate()
    pid = int(output)
    wait_until(lambda: pid in sweep.children_of(os.getpid()), "the adoption")
    orphans.reap(own=set(), sessions={parent.pid}, now_s=1.0)
    assert not is_zombie(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_closing_gives_orphans_back_to_whoever_got_them_before() -> None:
    Orphans(now_s=0.0).close()
    with subprocess.Popen(python(PARENT, "stay"), stdout=subprocess.PIPE, start_new_session=True) as parent:
        output, _ = parent.communicate()
    pid = int(output)
    proc = sweep.read_proc(pid)
    assert proc is not None
    assert proc.ppid != os.getpid()
    os.kill(pid, signal.SIGKILL)
