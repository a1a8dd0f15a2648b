from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpuward_supervisor.processes import sweep
from support.process_trees import TREE, alive, killed_at_the_end, pids_in, python, wait_dead, wait_until

TAG = "GPUWARD_TEST_SWEEP"


@contextmanager
def tree(folder: Path, tag: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, int]]]:
    leader = subprocess.Popen(
        python(TREE, folder), env={TAG: tag}, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdout is not None
    try:
        assert leader.stdout.readline() == b"up\n"
        pids = pids_in(folder)
        with killed_at_the_end(pids):
            yield leader, pids
    finally:
        leader.stdout.close()
        leader.kill()
        leader.wait()


def test_a_scan_sees_sessions_groups_and_environments(tmp_path: Path) -> None:
    with tree(tmp_path, "seen") as (leader, pids):
        scanned = {proc.pid: proc for proc in sweep.scan()}
        assert os.getpid() not in scanned
        assert [scanned[pid].value(TAG.encode()) for pid in pids.values()] == [b"seen"] * 3
        assert scanned[pids["child"]].session == scanned[pids["child"]].pgrp == leader.pid
        assert scanned[pids["grandchild"]].session == pids["grandchild"]
        assert scanned[pids["child"]].ppid == leader.pid
        assert sweep.children_of(leader.pid) == [pids["child"]]


def test_a_tag_is_a_whole_entry_not_a_part_of_one() -> None:
    proc = sweep.Proc(1, 0, 1, 1, "S", 0)
    proc.environ = b"A=1\0XGPUWARD_NODE=n.1\0GPUWARD_NODE=n.12\0B\0"
    assert proc.carries(b"GPUWARD_NODE=n.12")
    assert not proc.carries(b"GPUWARD_NODE=n.1")
    assert proc.value(b"GPUWARD_NODE") == b"n.12"
    assert proc.value(b"GPUWARD") is None
    assert proc.value(b"B") is None


def test_names_with_blanks_and_parentheses_do_not_confuse_the_status(tmp_path: Path) -> None:
    program = "import ctypes, signal; ctypes.CDLL(None).prctl(15, b') R 1 (', 0, 0, 0); print(1, flush=True)"
    with subprocess.Popen(
        python(f"{program}; signal.pause()"), stdout=subprocess.PIPE, start_new_session=True
    ) as named:
        assert named.stdout is not None
        named.stdout.readline()
        proc = sweep.read_proc(named.pid)
        named.kill()
    assert proc is not None
    assert (proc.ppid, proc.session) == (os.getpid(), named.pid)
    assert sweep.read_proc(named.pid) is None


def test_a_zombie_is_dead_and_a_reused_pid_is_another_process() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        zombie = sweep.read_proc(child.pid)
        assert zombie is not None
        assert zombie.dead
        assert not sweep.lives(zombie)
    own = sweep.read_proc(os.getpid())
    assert own is not None
    assert sweep.lives(own)
    own.start -= 1  # as if the pid had been given to us after that process
    assert not sweep.lives(own)
    assert not sweep.send_signal(own, signal.SIGKILL)


def test_without_pidfds_signals_still_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    with subprocess.Popen(["sleep", "600"]) as child:
        proc = sweep.read_proc(child.pid)
        assert proc is not None
        assert sweep.send_signal(proc, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


def test_extermination_reaches_what_left_the_session_and_ignores_signals(tmp_path: Path) -> None:
    tag = f"{TAG}={tmp_path}".encode()
    with tree(tmp_path, str(tmp_path)) as (leader, pids):
        ending = sweep.exterminate(lambda proc: proc.carries(tag), within_s=30, tidy=leader.poll)
        assert ending.done
        assert {pid for pid, _ in ending.killed} == set(pids.values())
        wait_dead(list(pids.values()))


def test_extermination_of_nobody_is_done_after_two_looks() -> None:
    looks = []
    ending = sweep.exterminate(lambda proc: bool(looks.append(proc.pid)), within_s=30)
    assert (ending.done, ending.killed, ending.survivors) == (True, set(), [])
    assert looks.count(1) == 2


def test_extermination_gives_up_on_what_will_not_die(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "send_signal", lambda proc, number: True)  # as a process in state D
    with subprocess.Popen(["sleep", "600"]) as child:
        ending = sweep.exterminate(lambda proc: proc.pid == child.pid, within_s=0.05)
        child.kill()
    assert not ending.done
    assert [proc.pid for proc in ending.survivors] == [child.pid]


def test_trackers_are_spared_until_the_others_are_gone_and_their_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, tracker = (sweep.Proc(pid, 1, 10, 10, "S", pid) for pid in (11, 12))
    dead: set[int] = set()
    told: list[int] = []
    monkeypatch.setattr(sweep, "is_tracker", lambda pid: pid == 12)
    monkeypatch.setattr(sweep, "lives", lambda proc: proc.pid not in dead)
    monkeypatch.setattr(sweep, "send_signal", lambda proc, number: told.append(proc.pid) or True)
    ending = sweep.Extermination(0.0)
    ending.step([worker, tracker], 0.0)
    ending.step(None, 1.0)
    assert told == [11, 11]
    dead.add(11)
    assert not ending.needs_scan  # the tracker lives
    ending.step(None, 2.0)
    ending.step(None, 2.0 + sweep.TRACKER_GRACE_S - 0.01)
    assert told == [11, 11]
    ending.step(None, 2.0 + sweep.TRACKER_GRACE_S)
    assert told == [11, 11, 12]
    dead.add(12)
    assert ending.needs_scan
    ending.step([], 3.0)
    assert not ending.done
    late = sweep.Proc(13, 1, 10, 10, "S", 13)  # forked behind the back of the first scan
    ending.step([late], 3.1)
    assert told[-1] == 13
    dead.add(13)
    for now_s in (3.2, 3.3):
        assert not ending.done
        ending.step([], now_s)
    assert ending.done
    assert len(ending.killed) == 3


def test_the_resource_tracker_is_recognised() -> None:
    program = (
        "from multiprocessing import resource_tracker as r; r.ensure_running(); "
        "print(r._resource_tracker._pid, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        tracker = int(process.stdout.readline())
        wait_until(lambda: sweep.is_tracker(tracker), "the tracker's own command line")
        assert not sweep.is_tracker(process.pid)
        process.communicate(b"\n")
    assert not sweep.is_tracker(process.pid)


# ---------------------------------------------------------------- shared memory


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of /dev/shm: other tests use the real one at the same time."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(sweep, "SHM", str(folder))
    monkeypatch.setattr(sweep, "sees_all_users_of_shm", lambda: True)
    return folder


def test_only_old_enough_files_with_the_names_of_libraries_are_stale(shm: Path) -> None:
    for name in ("psm_1", "sem.mp-1", "nccl-1", "vllm_1", "torch_1", "somebodys.data"):
        (shm / name).touch()
    (shm / "psm_folder").mkdir()
    created_s = (shm / "psm_1").stat().st_ctime
    names = {"psm_1", "sem.mp-1", "nccl-1", "vllm_1", "torch_1"}
    assert sweep.stale_shm(set(), created_s - 1, created_s) == (set(), True)
    assert sweep.stale_shm(set(), created_s - 1, created_s + 10) == (names, False)
    assert sweep.stale_shm(set(), created_s + 1, created_s + 10) == (set(), False)  # older than our start


def test_files_that_the_dead_tree_held_need_no_age_and_no_name(shm: Path) -> None:
    (shm / "own-name").touch()
    created_s = (shm / "own-name").stat().st_ctime
    assert sweep.stale_shm({"own-name", "gone"}, created_s - 1, created_s) == ({"own-name"}, False)


def test_where_users_of_shm_are_invisible_nothing_is_guessed(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "sees_all_users_of_shm", lambda: False)
    (shm / "psm_1").touch()
    (shm / "psm_2").touch()
    assert sweep.stale_shm({"psm_2"}, 0, time.time() + 10) == ({"psm_2"}, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="LEFT OUT: only root can make a file of another user")
def test_files_of_other_users_stay(shm: Path) -> None:
    (shm / "psm_1").touch()
    os.chown(shm / "psm_1", 12345, 12345)
    assert sweep.stale_shm({"psm_1"}, 0, time.time() + 10) == (set(), False)


def test_files_that_are_mapped_or_open_are_held(shm: Path) -> None:
    for name in ("mapped", "open", "free"):
        (shm / name).write_bytes(bytes(4096))
    with (shm / "open").open("rb"), (shm / "mapped").open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 4096)
        file.close()
        assert sweep.unheld_shm({"mapped", "open", "free"}) == {"free"}
        own = sweep.read_proc(os.getpid())
        assert own is not None
        assert sweep.shm_names_of([own]) == {"mapped", "open"}
        mapping.close()
    assert sweep.unheld_shm({"mapped", "open"}) == {"mapped", "open"}
    assert sweep.remove_shm(["free", "never-there"]) == ["free"]
    assert sorted(file.name for file in shm.iterdir()) == ["mapped", "open"]


def test_the_host_sees_all_users_of_its_own_shm() -> None:
    namespaces = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("ipc", "pid")}
    foreign = namespaces["ipc"] == "ipc:[4026531839]" and namespaces["pid"] != "pid:[4026531836]"
    assert sweep.sees_all_users_of_shm() is not foreign


# ---------------------------------------------------------------- folders


def test_a_tree_is_removed_entry_by_entry_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "file").touch()
    (root / "link").symlink_to(outside)
    steps = sweep.remove_tree(str(root))
    next(steps)
    assert root.exists()
    assert len(list(steps)) == 3
    assert not root.exists()
    assert (outside / "kept").exists()
    assert list(sweep.remove_tree(str(root))) == []  # a folder that is gone already


def test_nothing_of_these_tests_is_left() -> None:
    """The trees above end with their tests: a leak would show here."""
    assert not [proc.pid for proc in sweep.scan() if proc.ppid == os.getpid() and alive(proc.pid) and
                proc.value(TAG.encode()) is not None]  # fmt: skip
