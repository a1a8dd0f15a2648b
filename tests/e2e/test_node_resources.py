"""What a live node holds on to: nothing grows with deaths, what is deleted is made again, limits are told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpuward_devqueue.records import Status
from gpuward_devqueue.thread import DevQueueThread
from support.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHAT = {"task": "openai/chat-completion", "messages": [{"role": "user", "content": "one two"}]}
ECHO = 'kind = "echo"'
SOON = "[restarts]\nbackoff_first_s = 0.01\nbackoff_max_s = 0.01\nintensity = 1000\n"


@pytest.fixture
def queue() -> Iterator[DevQueueThread]:
    with DevQueueThread() as queue:
        yield queue


def held(node: Node) -> dict[str, Any]:
    """What a supervisor has of everything that a death could leave behind."""
    supervisor = psutil.Process(node.pid)
    return {
        "open files": supervisor.num_fds(),
        "threads": supervisor.num_threads(),
        "children": len(supervisor.children()),
        "runtime": len(os.listdir(node.runtime_dir)),
        "transit": len(os.listdir(node.state_dir / "transit")),
    }


def test_deaths_leave_nothing_behind(queue: DevQueueThread, tmp_path: Path) -> None:
    with Node(tmp_path / "n", queue.ws_url, engine=ECHO, extra=SOON) as node:
        node.wait_ready(2)
        queue.wait_workers(1)
        before = held(node)
        for nth, number in enumerate([signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM] * 3):
            os.kill(node.executor_pids()[f"cpu{nth % 2}"], number)
            node.wait_ready(3 + nth)
        # The last dead one's socket is closed by a thread of the link, in its own time.
        node.wait_until(lambda: held(node) == before, what=f"{before} again")
        assert node.stop() == 0


def test_a_deleted_runtime_folder_is_made_again_for_the_next_incarnation(
    queue: DevQueueThread, tmp_path: Path
) -> None:
    """Something cleans up /tmp: connected executors go on, and those that die find their way back."""
    with Node(tmp_path / "n", queue.ws_url, engine=ECHO, extra=SOON) as node:
        node.wait_ready(2)
        queue.wait_workers(1)
        shutil.rmtree(node.runtime_dir)
        os.kill(node.executor_pids()["cpu0"], signal.SIGKILL)
        node.wait_ready(3)
        node.wait_for("runtime_dir.restored", level="warning")
        assert node.runtime_dir.stat().st_mode & 0o777 == 0o700
        views = queue.wait_terminal(queue.submit_many([CHAT] * 4), 30)
        assert {view.status for view in views.values()} == {Status.COMPLETED}
        assert node.stop() == 0
    assert not node.runtime_dir.exists()


def test_too_few_open_files_are_refused_at_the_start(queue: DevQueueThread, tmp_path: Path) -> None:
    """The messaging library below aborts the process when it runs out of them."""
    node = Node(tmp_path / "n", queue.ws_url, engine=ECHO)
    run = [sys.executable, "-m", "gpuward_supervisor", "run", *node.arguments]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -n 40; exec "$@"', "sh", *run],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "the limit on open files is 40, this node needs" in done.stdout
    assert not node.runtime_dir.exists()


@pytest.mark.parametrize(
    "moment", ["node.starting", "executor.spawned", "executor.connected", "engine.started"]
)
def test_a_stop_at_any_moment_of_the_start_is_clean(
    queue: DevQueueThread, tmp_path: Path, moment: str
) -> None:
    with Node(tmp_path / "n", queue.ws_url) as node:
        node.wait_for(moment)
        assert node.stop() == 0
        assert node.survivors() == []
    assert not node.runtime_dir.exists()
    assert not (node.state_dir / "transit").exists()
