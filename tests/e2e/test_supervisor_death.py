"""The supervisor is killed, or told to stop: what it owed arrives, and nothing of it is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gpuward_devqueue.broker import Broker
from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.ledger import LinkNote, Note
from gpuward_devqueue.records import Status
from gpuward_devqueue.thread import DevQueueThread
from support.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHAT = {
    "task": "openai/chat-completion",
    "messages": [{"role": "user", "content": "one two three four five six seven eight"}],
    "max_tokens": 8,
}
ENDLESS = {**CHAT, "max_tokens": 30_000, "ignore_eos": True}


@pytest.fixture
def queue() -> Iterator[DevQueueThread]:
    with DevQueueThread(DevQueueConfig(frames_kept_max=10_000)) as queue:
        yield queue


def shm_entries() -> set[str]:
    return set(os.listdir("/dev/shm"))


def refuse_and_cut(queue: DevQueueThread) -> None:
    """The queue goes away: connections are cut and none is accepted."""
    queue.misbehave("refuse-upgrade", status=500, times=0)

    def cut(broker: Broker) -> None:
        for link in list(broker._links.values()):
            link.abort()

    queue.ask(cut)


def test_results_that_were_not_sent_arrive_once_each_after_a_kill(
    queue: DevQueueThread, tmp_path: Path
) -> None:
    engine = 'kind = "simulated"\nextra_args = ["--token-s", "0.1"]'
    first = Node(tmp_path / "n", queue.ws_url, engine=engine)
    with first:
        first.wait_ready(2)
        queue.wait_until(
            lambda broker: [w.capacity for w in broker.workers()] == [8], 20, "all slots offered"
        )
        jobs = queue.submit_many([CHAT] * 8)
        queue.wait_until(
            lambda broker: all(broker.job(job).status is Status.RUNNING for job in jobs), 20, "jobs to run"
        )
        refuse_and_cut(queue)
        first.wait_for("job.finished", count=8)
        first.kill()
    fences = {job: queue.job(job).fence_token for job in jobs}
    assert all(queue.job(job).status is Status.RUNNING for job in jobs), "nothing may have arrived yet"
    queue.behave()
    with Node(tmp_path / "n", queue.ws_url, engine=engine) as second:
        views = queue.wait_terminal(jobs, 30)
        assert {view.status for view in views.values()} == {Status.COMPLETED}
        assert {job: view.fence_token for job, view in views.items()} == fences, "no job was run again"
        for job in jobs:
            assert [entry.note for entry in queue.page(job)].count(Note.COMPLETED) == 1
        counters = queue.counters()
        assert (counters.duplicates, counters.stale, counters.wrong_fence) == (0, 0, 0)
        second.wait_ready(2)
        assert second.stop() == 0
    # Delivered and forgotten: a third life owes nothing.
    with Node(tmp_path / "n", queue.ws_url, engine='kind = "echo"') as third:
        third.wait_ready(2)
        queue.wait_workers(1)
        assert third.stop() == 0
    assert queue.counters().duplicates == 0


def test_nothing_outlives_a_killed_supervisor_by_a_second(queue: DevQueueThread, tmp_path: Path) -> None:
    """Not even a grandchild that left the session and ignores SIGTERM."""
    engine = (
        'kind = "simulated"\nextra_args = ["--workers", "1", "--setsid-grandchild", "--shm-segments", "2"]'
    )
    before = shm_entries()
    node = Node(tmp_path / "n", queue.ws_url, engine=engine)
    with node:
        node.wait_ready(2)
        queue.wait_workers(1)
        jobs = queue.submit_many([ENDLESS] * 4)
        queue.wait_until(
            lambda broker: all(broker.job(j).status is Status.RUNNING for j in jobs), 20, "running"
        )
        family = psutil.Process(node.pid).children(recursive=True)
        assert len(node.survivors()) >= 2 * 5, node.survivors()
        node.kill()
        deadline = time.monotonic() + 1.0
        watched = [p for p in family if "guardian" not in " ".join(_cmdline(p))]
        while any(map(_alive, watched)) and time.monotonic() < deadline:
            select.select([], [], [], 0.02)
        assert [(p.pid, _cmdline(p)) for p in watched if _alive(p)] == []
        assert node.survivors() == []
    deadline = time.monotonic() + 10
    while (node.runtime_dir.exists() or shm_entries() - before) and time.monotonic() < deadline:
        select.select([], [], [], 0.1)
    assert not node.runtime_dir.exists()
    assert shm_entries() - before == set()


def _alive(process: psutil.Process) -> bool:
    """Whether it runs: a zombie that its new parent has not reaped yet is dead."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_nothing_is_left_behind_after_a_normal_stop(queue: DevQueueThread, tmp_path: Path) -> None:
    engine = 'kind = "simulated"\nextra_args = ["--setsid-grandchild", "--shm-segments", "2"]'
    before = shm_entries()
    node = Node(tmp_path / "n", queue.ws_url, engine=engine)
    with node:
        node.wait_ready(2)
        queue.wait_workers(1)
        queue.wait_terminal(queue.submit_many([CHAT] * 8), 30)
        assert node.stop() == 0
    assert node.survivors() == []
    assert not node.runtime_dir.exists()
    assert shm_entries() - before == set()
    assert not (node.state_dir / "transit").exists()
    assert sorted(os.listdir(node.state_dir / "spool")) == []


def test_a_stop_waits_for_running_jobs_and_delivers_them(queue: DevQueueThread, tmp_path: Path) -> None:
    engine = 'kind = "simulated"\nextra_args = ["--token-s", "0.2"]'
    with Node(tmp_path / "n", queue.ws_url, engine=engine) as node:
        node.wait_ready(2)
        queue.wait_workers(1)
        jobs = queue.submit_many([CHAT] * 4)
        queue.wait_until(
            lambda broker: all(broker.job(j).status is Status.RUNNING for j in jobs), 20, "running"
        )
        assert node.stop() == 0
    assert {view.status for view in queue.wait_terminal(jobs, 1).values()} == {Status.COMPLETED}
    assert any(entry.note is LinkNote.DRAINED for entry in queue.ledger().connections)


def test_a_second_signal_means_now(queue: DevQueueThread, tmp_path: Path) -> None:
    node = Node(
        tmp_path / "n",
        queue.ws_url,
        engine='kind = "simulated"\nextra_args = ["--token-s", "0.1"]',
        environment={"CASOLA_SHUTDOWN_GRACE_PERIOD": "300"},
    )
    with node:
        node.wait_ready(2)
        queue.wait_workers(1)
        (job,) = queue.submit_many([ENDLESS])
        queue.wait_until(lambda broker: broker.job(job).status is Status.RUNNING, 20, "running")
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        node.wait_for("node.draining")
        node.process.send_signal(signal.SIGTERM)
        assert node.wait_exit(20) == 0
    # Not dropped: the caller is told.
    assert queue.wait_terminal([job], 1)[job].status is Status.FAILED
    assert node.survivors() == []


def test_a_job_over_the_grace_is_answered_with_an_error(queue: DevQueueThread, tmp_path: Path) -> None:
    node = Node(
        tmp_path / "n",
        queue.ws_url,
        engine='kind = "simulated"\nextra_args = ["--token-s", "0.1"]',
        environment={"CASOLA_SHUTDOWN_GRACE_PERIOD": "0.5"},
    )
    with node:
        node.wait_ready(2)
        queue.wait_workers(1)
        (job,) = queue.submit_many([ENDLESS])
        queue.wait_until(lambda broker: broker.job(job).status is Status.RUNNING, 20, "running")
        assert node.stop() == 0
    view = queue.wait_terminal([job], 1)[job]
    assert view.status is Status.FAILED
    assert "shut" in str(view.error)


def test_a_full_disk_stops_neither_jobs_nor_results(
    queue: DevQueueThread, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Less space than is to stay free: loud in the log, and work goes on, from memory."""
    state = tmp_path / "n" / "state"
    state.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(state)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small file system: {mounted.stderr.strip()}")
    request.addfinalizer(lambda: subprocess.run(["umount", str(state)], check=True))
    with Node(tmp_path / "n", queue.ws_url) as node:
        node.wait_ready(2)
        queue.wait_workers(1)
        views = queue.wait_terminal(queue.submit_many([CHAT] * 8), 30)
        assert {view.status for view in views.values()} == {Status.COMPLETED}
        node.wait_for("journal.failed", level="error")
        assert node.stop() == 0


def test_two_supervisors_on_one_state_directory_do_not_mix(queue: DevQueueThread, tmp_path: Path) -> None:
    with Node(tmp_path / "n", queue.ws_url, engine='kind = "echo"') as first:
        first.wait_ready(2)
        with Node(tmp_path / "n", queue.ws_url, engine='kind = "echo"') as second:
            assert second.wait_exit(30) == 1
            assert any("another" in str(line).lower() for line in second.lines), second.tail()
        assert first.stop() == 0
