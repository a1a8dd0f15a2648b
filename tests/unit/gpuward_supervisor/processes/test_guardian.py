from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuward_supervisor.processes import guardian
from support.process_trees import TREE, alive, kill_all, pids_in, python, wait_dead, wait_until


class Post:
    """A guardian on duty over one tree."""

    def __init__(self, folder: Path) -> None:
        self.entry = f"GPUWARD_NODE=test.{folder}"
        self.runtime_dir = folder / "run"
        self.runtime_dir.mkdir()
        (self.runtime_dir / ".gpuward").write_text(self.entry)
        (self.runtime_dir / "executors.sock").touch()
        read_fd, self.write_fd = os.pipe()
        program = [sys.executable, "-I", "-S", guardian.__file__]
        self.process = subprocess.Popen(
            [*program, self.entry, str(self.runtime_dir), str(time.time())],
            stdin=read_fd,
            stderr=subprocess.PIPE,
            env={},
            start_new_session=True,
        )
        os.close(read_fd)
        (folder / "tree").mkdir()
        name, _, value = self.entry.partition("=")
        self.leader = subprocess.Popen(
            python(TREE, folder / "tree"), env={name: value}, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.leader.stdout is not None
        assert self.leader.stdout.readline() == b"up\n"
        self.pids = pids_in(folder / "tree")

    def supervisor_dies(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def end(self) -> None:
        self.supervisor_dies()
        kill_all(self.pids.values())
        self.process.kill()
        self.process.communicate()
        self.leader.communicate()


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    post = Post(tmp_path)
    yield post
    post.end()


def test_when_the_supervisor_is_gone_so_is_everything_with_its_tag(post: Post) -> None:
    post.supervisor_dies()
    _, said = post.process.communicate(timeout=30)
    assert post.process.returncode == 0
    assert b"killed 3 processes, 0 would not die" in said
    wait_dead(list(post.pids.values()))
    assert not post.runtime_dir.exists()


def test_an_orderly_end_leaves_the_rest_to_the_supervisor(post: Post) -> None:
    os.write(post.write_fd, b"q")
    assert post.process.wait(30) == 0
    assert all(map(alive, post.pids.values()))
    assert post.runtime_dir.exists()


def test_signals_to_the_whole_container_do_not_stop_the_guardian(post: Post) -> None:
    # Ignored signals are visible to others: no need to wait for something that does not happen.
    wait_until(lambda: _ignored(post.process.pid) >= {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}, "duty")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        post.process.send_signal(number)
    post.supervisor_dies()
    post.process.communicate(timeout=30)
    assert post.process.returncode == 0
    wait_dead(list(post.pids.values()))


def test_a_runtime_folder_of_another_life_is_left_alone(post: Post) -> None:
    (post.runtime_dir / ".gpuward").write_text("GPUWARD_NODE=test.successor")
    post.supervisor_dies()
    assert post.process.wait(30) == 0
    assert (post.runtime_dir / "executors.sock").exists()


def test_processes_of_other_supervisors_are_left_alone(post: Post, tmp_path: Path) -> None:
    env = {"GPUWARD_NODE": f"test.{tmp_path}2"}
    with subprocess.Popen(["sleep", "600"], env={**env, "PATH": os.environ["PATH"]}) as neighbour:
        post.supervisor_dies()
        post.process.wait(30)
        wait_dead(list(post.pids.values()))
        assert neighbour.poll() is None
        neighbour.kill()


def test_the_guardian_is_small(post: Post) -> None:
    wait_until(lambda: signal.SIGTERM in _ignored(post.process.pid), "duty")
    status = Path(f"/proc/{post.process.pid}/status").read_text()
    resident_kib = int(status.partition("VmRSS:")[2].split()[0])
    assert resident_kib < 16 * 1024


def _ignored(pid: int) -> set[int]:
    status = Path(f"/proc/{pid}/status").read_text()
    bits = int(status.partition("SigIgn:")[2].split()[0], 16)
    return {number for number in range(1, 32) if bits >> (number - 1) & 1}
