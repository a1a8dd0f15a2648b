from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpuward_executors.lifeline import parent_is, watch_death_fd

#: A parent whose child arms the signal, says so, and waits.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, time
from gpuward_executors.lifeline import arm_parent_death_signal
print(arm_parent_death_signal(), os.getpid(), flush=True)
time.sleep(600)
'''])
time.sleep(600)
"""

#: A leader of a group with a child; kills its group.
LEADER = """
import subprocess, sys
from gpuward_executors.lifeline import kill_group
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
kill_group()
"""


def gone(pid: int) -> bool:
    """True when a process that is not ours to wait for has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in {"Z", "X"}
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.005)


def test_a_process_dies_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        armed, pid = parent.stdout.readline().split()
        assert armed == "True"
        os.kill(parent.pid, signal.SIGKILL)
        wait_until_gone(int(pid))


def test_the_parent_is_known_by_its_pid() -> None:
    assert parent_is(os.getppid())
    assert parent_is(None)
    assert not parent_is(os.getpid())


def test_the_end_of_the_death_pipe_is_noticed_and_bytes_in_it_are_not_its_end() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        os.set_inheritable(reading, True)
        died = asyncio.Event()
        watch_death_fd(loop, reading, died.set)
        assert not os.get_inheritable(reading)
        os.write(writing, b"x")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not died.is_set()
        os.close(writing)
        await asyncio.wait_for(died.wait(), 30)
        os.close(reading)

    asyncio.run(run())


def test_a_leader_takes_its_whole_group_along() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEADER], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        pid = int(leader.stdout.readline())
        assert leader.wait(30) == -signal.SIGKILL
        wait_until_gone(pid)


def test_a_process_in_somebody_elses_group_kills_itself_alone() -> None:
    code = "from gpuward_executors.lifeline import *\nprint(leads_own_group(), flush=True)\nkill_group()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("False", -signal.SIGKILL)
