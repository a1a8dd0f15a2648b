from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpuward_supervisor.processes import burial, sweep
from gpuward_supervisor.processes.burial import Burial, Tree
from support.process_trees import TREE, kill_all, pids_in, python, wait_dead

TAGS = ("GPUWARD_EXECUTOR=gpu0.1", "GPUWARD_NODE=test.burial")


def member(pid: int, pgrp: int, session: int, *tags: str) -> sweep.Proc:
    proc = sweep.Proc(pid, 1, pgrp, session, "S", pid)
    proc.environ = "\0".join(tags).encode()
    return proc


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(sweep, "SHM", str(folder))
    monkeypatch.setattr(sweep, "sees_all_users_of_shm", lambda: True)
    return folder


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    (tmp_path / "tree").mkdir()
    env = dict(tag.split("=") for tag in TAGS)
    leader = subprocess.Popen(
        python(TREE, tmp_path / "tree"), env=env, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    assert leader.stdout.readline() == b"up\n"
    yield leader
    kill_all(pids_in(tmp_path / "tree").values())
    leader.communicate()


def bury(subject: Burial) -> int:
    steps = 0
    while not subject.done:
        time.sleep(max(0.0, subject.due_s - time.monotonic()))
        subject.step(sweep.scan, time.monotonic())
        steps += 1
        assert steps < 5000
    return steps


def test_a_tree_is_its_session_its_group_and_both_tags_together() -> None:
    tree = Tree(100, TAGS)
    assert not tree.owns(member(100, 100, 100, *TAGS))  # the leader is watched by itself
    assert tree.owns(member(101, 100, 100))
    assert tree.owns(member(102, 102, 100))
    assert tree.owns(member(103, 103, 103, *TAGS))
    assert not tree.owns(member(104, 104, 104))
    assert not tree.owns(member(105, 105, 105, TAGS[0]))  # gpu0.1 of another node
    assert not tree.owns(member(106, 106, 106, "GPUWARD_EXECUTOR=gpu0.12", TAGS[1]))


def test_a_whole_tree_is_buried_with_its_folder(
    leader: subprocess.Popen[bytes], tmp_path: Path, shm: Path
) -> None:
    work_dir = tmp_path / "gpu0.1"
    (work_dir / "tmp").mkdir(parents=True)
    for number in range(50):
        (work_dir / "tmp" / str(number)).touch()
    pids = pids_in(tmp_path / "tree")
    os.kill(leader.pid, signal.SIGSEGV)
    os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
    subject = Burial(Tree(leader.pid, TAGS), work_dir, time.time(), time.monotonic())
    bury(subject)
    wait_dead(list(pids.values()))
    assert not work_dir.exists()
    assert subject.leftovers == 1  # the grandchild, which had left the group


def test_shared_memory_that_the_tree_held_goes_at_once_and_held_files_stay(
    leader: subprocess.Popen[bytes], tmp_path: Path, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {name: (shm / name).open("w+b") for name in ("engine", "neighbour")}
    monkeypatch.setattr(sweep, "shm_names_of", lambda procs: {"engine", "neighbour"} if procs else set())
    held["engine"].close()  # as its holder dies; the other file is in use elsewhere
    leader.kill()
    subject = Burial(Tree(leader.pid, TAGS), None, (shm / "engine").stat().st_ctime, time.monotonic())
    with capture_logs() as logs:
        bury(subject)
    assert [file.name for file in shm.iterdir()] == ["neighbour"]
    assert [log["names"] for log in logs if log["event"] == "shm.swept"] == [["engine"]]
    held["neighbour"].close()


def test_young_shared_memory_of_unknown_origin_is_left_for_later(
    leader: subprocess.Popen[bytes], shm: Path
) -> None:
    (shm / "psm_x").touch()
    leader.kill()
    subject = Burial(Tree(leader.pid, TAGS), None, (shm / "psm_x").stat().st_ctime, time.monotonic())
    bury(subject)
    assert subject.young_shm
    assert (shm / "psm_x").exists()


def test_large_folders_are_removed_a_little_in_each_turn(
    leader: subprocess.Popen[bytes], tmp_path: Path, shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = tmp_path / "gpu0.1"
    work_dir.mkdir()
    for number in range(20):
        (work_dir / str(number)).touch()
    leader.kill()
    monkeypatch.setattr(burial, "REMOVE_BUDGET_S", 0.0)  # one entry a turn
    monkeypatch.setattr(Burial, "_files_are_gone", _one_entry)
    assert bury(Burial(Tree(leader.pid, TAGS), work_dir, time.time(), time.monotonic())) > 20
    assert not work_dir.exists()


def _one_entry(self: Burial) -> bool:
    return next(self._files, self) is self


def test_a_process_that_hangs_in_the_kernel_is_reported_once_and_holds_up_the_end(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = member(101, 100, 100)
    stuck.state = "D"
    monkeypatch.setattr(sweep, "send_signal", lambda proc, number: True)
    monkeypatch.setattr(sweep, "lives", lambda proc: True)
    subject = Burial(Tree(100, TAGS), None, 0.0, now_s=0.0)
    with capture_logs() as logs:
        for now_s in (0.0, 5.0, 10.0, 20.0):
            subject.step(lambda: [stuck], now_s)
            assert subject.due_s > now_s
    assert not subject.done
    (report,) = logs
    assert (report["event"], report["processes"]) == ("executor.will_not_die", ["101 (D)"])
