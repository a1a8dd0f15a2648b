from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuward_supervisor.processes.keeper import RESTART_S, GuardianKeeper
from support.process_trees import alive, wait_until


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[GuardianKeeper]:
    keeper = GuardianKeeper("GPUWARD_NODE=test.keeper", tmp_path, (), now_s=0.0)
    yield keeper
    keeper.dismiss()


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_living_guardian_is_not_started_twice(keeper: GuardianKeeper) -> None:
    pid = keeper.pid
    assert not keeper.exited(now_s=5.0)
    keeper.restart(now_s=5.0)
    assert keeper.pid == pid
    assert keeper.due_s is None


def test_a_dead_guardian_is_started_again_at_once(keeper: GuardianKeeper) -> None:
    first = keeper.pid
    kill(first)
    assert keeper.exited(now_s=50.0)
    assert (keeper.pid, keeper.due_s) == (None, 50.0)
    keeper.restart(now_s=50.0)
    assert keeper.pid not in {None, first}
    assert keeper.due_s is None


def test_one_that_dies_at_once_is_started_again_later(keeper: GuardianKeeper) -> None:
    kill(keeper.pid)
    assert keeper.exited(now_s=0.1)
    assert keeper.due_s == 0.1 + RESTART_S


def test_one_that_cannot_be_started_is_tried_again(
    keeper: GuardianKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(keeper.pid)
    keeper.exited(now_s=50.0)
    keeper._argv[0] = "/nonexistent/python"
    keeper.restart(now_s=50.0)
    assert (keeper.pid, keeper.due_s) == (None, 50.0 + RESTART_S)
    keeper._argv[0] = sys.executable
    keeper.restart(now_s=51.0)
    assert keeper.pid is not None


def test_dismissed_it_leaves_and_is_reaped(tmp_path: Path) -> None:
    keeper = GuardianKeeper("GPUWARD_NODE=test.keeper", tmp_path, (), now_s=0.0)
    pid = keeper.pid
    assert pid is not None
    keeper.dismiss()
    keeper.dismiss()
    assert not Path(f"/proc/{pid}").exists()


def test_it_holds_what_it_was_given_and_nothing_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASOLA_API_TOKEN", "canary")
    monkeypatch.setenv("GPUWARD_NODE", "test.parent")
    with (tmp_path / "lock").open("w") as lock:
        keeper = GuardianKeeper("GPUWARD_NODE=test.keeper", tmp_path, (lock.fileno(),), now_s=0.0)
        pid = keeper.pid
        assert pid is not None
        held = os.readlink(f"/proc/{pid}/fd/{lock.fileno()}")
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        keeper.dismiss()
    assert held == str(tmp_path / "lock")
    assert b"canary" not in environ
    assert b"GPUWARD_NODE" not in environ


#: A supervisor that leaves without a word, with a child that inherited all it could.
ABANDONED = """
import subprocess, sys
from pathlib import Path
from gpuward_supervisor.processes.keeper import GuardianKeeper
keeper = GuardianKeeper("GPUWARD_NODE=test.abandoned", Path(sys.argv[1]), (), 0.0)
child = subprocess.Popen(["sleep", "600"])
print(keeper.pid, child.pid, flush=True)
input()
"""


@pytest.mark.slow
def test_end_of_file_means_the_supervisor_even_if_its_other_children_live(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ABANDONED, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as supervisor:
        assert supervisor.stdout is not None
        guardian, child = map(int, supervisor.stdout.readline().split())
        supervisor.kill()
    wait_until(lambda: not alive(guardian), "the guardian's end")
    assert alive(child)  # it carries no tag
    os.kill(child, signal.SIGKILL)
