"""The supervisor as PID 1 of a container: signals, adopted children, and nothing that outlives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.records import Status
from gpuward_devqueue.thread import DevQueueThread
from support.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CHAT = {"task": "openai/chat-completion", "messages": [{"role": "user", "content": "hello"}]}
#: A new PID namespace with a /proc of its own, as a container runtime makes one.
UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL")


@pytest.fixture
def queue() -> Iterator[DevQueueThread]:
    with DevQueueThread(DevQueueConfig()) as queue:
        yield queue


class Container:
    """``gpuward run`` as PID 1 of a PID namespace."""

    def __init__(self, node: Node) -> None:
        tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"needs the right to make a PID namespace: {tried.stderr.strip()}")
        self.outer = subprocess.Popen(
            [*UNSHARE, sys.executable, "-m", "gpuward_supervisor", "run", *node.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def supervisor(self) -> psutil.Process:
        (supervisor,) = psutil.Process(self.outer.pid).children()
        return supervisor

    def wait_for(self, event: str, count: int = 1) -> None:
        assert self.outer.stdout is not None
        while count:
            raw = self.outer.stdout.readline()
            assert raw, f"the log ended before {event}"
            count -= json.loads(raw).get("event") == event

    def drain_log(self) -> None:
        assert self.outer.stdout is not None
        self.outer.stdout.read()
        self.outer.stdout.close()


@pytest.fixture
def container(queue: DevQueueThread, tmp_path: Path) -> Iterator[Container]:
    engine = 'kind = "simulated"\nextra_args = ["--workers", "1", "--setsid-grandchild"]'
    container = Container(Node(tmp_path / "n", queue.ws_url, engine=engine))
    container.wait_for("executor.ready", 2)
    queue.wait_workers(1)
    yield container
    if container.outer.poll() is None:
        container.outer.kill()
    container.outer.wait(10)
    if container.outer.stdout is not None:
        container.outer.stdout.close()


def test_pid_1_works_reaps_and_stops_with_exit_code_0(queue: DevQueueThread, container: Container) -> None:
    supervisor = container.supervisor()
    family = supervisor.children(recursive=True)
    victim = next(p for p in family if "gpuward_executors.simulated" in " ".join(p.cmdline()))
    victim.kill()
    container.wait_for("executor.ready")
    (job,) = queue.submit_many([CHAT])
    assert queue.wait_terminal([job], 20)[job].status is Status.COMPLETED
    # The dead engine's children were adopted by PID 1, which has to bury them.
    assert [p.pid for p in supervisor.children(recursive=True) if p.status() == psutil.STATUS_ZOMBIE] == []
    supervisor.send_signal(signal.SIGTERM)
    container.drain_log()
    assert container.outer.wait(20) == 0


def test_when_pid_1_is_killed_nothing_is_left(container: Container) -> None:
    supervisor = container.supervisor()
    family = supervisor.children(recursive=True)
    assert len(family) >= 9, family
    os.kill(supervisor.pid, signal.SIGKILL)
    container.drain_log()
    container.outer.wait(20)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
