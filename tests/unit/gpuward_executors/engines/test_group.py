from __future__ import annotations

import os
import subprocess
import sys
import time

from gpuward_executors.engines import group

#: A process that leads a group, and a child of it; says both pids.
TREE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""

#: A process that leads a group, looks at the others in it, kills them, and says whom it saw.
LEADER = """
import subprocess, sys, time
from gpuward_executors.engines import group
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"])
seen = group.others_in_own_group()
group.kill([*seen, 2**22 + 1])
print(seen == [child.pid], child.wait(30))
"""


def test_the_members_of_a_group_are_found_weighed_and_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", TREE], stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        pids = [int(pid) for pid in leader.stdout.readline().split()]
        try:
            assert sorted(group.members(leader.pid)) == sorted(pids)
            assert group.rss_bytes(pids) > group.rss_bytes(pids[:1]) > 1_000_000
        finally:
            group.kill(pids)
        assert leader.wait(30) == -9
    deadline = time.monotonic() + 30
    while group.members(leader.pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_leader_kills_the_others_and_not_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEADER], capture_output=True, text=True, start_new_session=True, check=True
    )
    assert done.stdout.strip() == "True -9"


def test_a_resource_tracker_is_spared_so_that_it_can_tidy_up() -> None:
    code = "import time; 'multiprocessing.resource_tracker'; print('up', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE) as tracker:
        assert tracker.stdout is not None
        tracker.stdout.readline()
        group.kill([tracker.pid])
        tracker.terminate()
        assert tracker.wait(30) == -15


def test_who_does_not_lead_the_group_has_no_others() -> None:
    look = "from gpuward_executors.engines import group; print(group.others_in_own_group())"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_process_that_is_gone_weighs_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    gone.wait(30)
    assert group.rss_bytes([gone.pid]) == 0
    assert group.rss_bytes([os.getpid()]) > 0
