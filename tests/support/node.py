"""A whole node for tests: the real ``gpuward run`` as a child process, with its log as parsed lines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

#: Default bound of every wait in seconds; far above what a healthy machine needs.
PATIENCE_S = 30.0


class NodeFailed(AssertionError):
    """The node did not do what the test waited for; carries the tail of its log."""


class Node:
    """Starts, watches and ends one supervisor."""

    def __init__(
        self,
        folder: Path,
        queue_url: str,
        *,
        executors: int = 2,
        slots: int = 4,
        engine: str = 'kind = "simulated"\nextra_args = ["--allow-faults"]',
        extra: str = "",
        environment: dict[str, str] | None = None,
        port_base: int | None = None,
    ) -> None:
        """Write the configuration; nothing is started yet.

        Args:
            folder: private folder of this node (state, runtime, configuration).
            queue_url: ``ws://…`` of the queue, without ``/ws``.
            executors: CPU-only executors to run.
            slots: jobs each runs at once.
            engine: lines of the ``[executors.engine]`` table.
            extra: further TOML, appended.
            environment: added to the supervisor's environment.
            port_base: first engine port; a free range is looked for when None.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state_dir = folder / "state"
        self.runtime_dir = folder / "run"
        self.config = folder / "node.toml"
        #: After ``gpuward run``; empty for a node that is configured by its environment alone.
        self.arguments = ["--config", str(self.config)]
        base = port_base if port_base is not None else free_port_block(16 * executors)
        self.config.write_text(
            f"""
[node]
state_dir = "{self.state_dir}"
runtime_dir = "{self.runtime_dir}"
log_level = "debug"
log_format = "json"
[source.casola]
url = "{queue_url}"
config_id = "default"
worker_id = "test-node"
[executors]
gpus = "none"
count = {executors}
slots = {slots}
port_base = {base}
[executors.engine]
{engine}
{extra}
"""
        )
        self._environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("CASOLA_", "VLLM_", "GPUWARD_"))
        } | (environment or {})
        self.lines: list[dict[str, Any]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self._news = threading.Condition()
        self._reader: threading.Thread | None = None

    # ------------------------------------------------------------ life

    def start(self) -> Self:
        """Start the supervisor; returns at once."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuward_supervisor", "run", *self.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
        )
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()
        return self

    def stop(self, within_s: float = PATIENCE_S) -> int:
        """SIGTERM, wait, return the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait_exit(within_s)

    def kill(self) -> None:
        """SIGKILL the supervisor alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self._stop_reading()

    def wait_exit(self, within_s: float = PATIENCE_S) -> int:
        """Wait for the supervisor's own end; returns its exit code."""
        assert self.process is not None and self._reader is not None
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise NodeFailed(f"still running after {within_s} s\n{self.tail()}") from None
        self._stop_reading()
        return code

    def _stop_reading(self) -> None:
        """The log's end; a process that outlives the supervisor may hold the pipe open a little longer."""
        if self._reader is not None and self.process is not None and self.process.stdout is not None:
            self._reader.join(10)
            if not self._reader.is_alive():
                self.process.stdout.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    child.kill()
                self.process.kill()
                self.process.wait()
        self._stop_reading()
        if kind is not None:
            print(self.tail(80))

    # ------------------------------------------------------------ what it says

    def wait_for(
        self, event: str, within_s: float = PATIENCE_S, count: int = 1, **facts: Any
    ) -> dict[str, Any]:
        """Wait until ``count`` lines with this event name and these facts have been logged."""

        def found() -> list[dict[str, Any]]:
            return [
                line
                for line in self.lines
                if line.get("event") == event and all(line.get(k) == v for k, v in facts.items())
            ]

        self.wait_until(lambda: len(found()) >= count, within_s, f"log line {event} {facts} x{count}")
        return found()[count - 1]

    def wait_until(self, condition: Callable[[], bool], within_s: float = PATIENCE_S, what: str = "") -> None:
        """Wait until the condition holds; looked at with every new log line and every 50 ms."""
        deadline = time.monotonic() + within_s
        with self._news:
            while not condition():
                if self.process is not None and self.process.poll() is not None and not condition():
                    raise NodeFailed(
                        f"it ended with {self.process.returncode}, {what or condition}\n{self.tail()}"
                    )
                if time.monotonic() > deadline:
                    raise NodeFailed(f"waited {within_s} s for {what or condition}\n{self.tail()}")
                self._news.wait(0.05)

    def wait_ready(self, executors: int, within_s: float = PATIENCE_S) -> None:
        """Wait until this many executors have been ready."""
        self.wait_for("executor.ready", within_s, count=executors)

    def tail(self, lines: int = 40) -> str:
        """The last lines of the log, for failure messages."""
        return "\n".join(json.dumps(line) for line in self.lines[-lines:])

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": "raw", "text": raw.decode(errors="replace").rstrip()}
            with self._news:
                self.lines.append(line if isinstance(line, dict) else {"event": "raw", "text": str(line)})
                self._news.notify_all()

    # ------------------------------------------------------------ its processes

    @property
    def pid(self) -> int:
        """Pid of the supervisor."""
        assert self.process is not None
        return self.process.pid

    def executor_pids(self) -> dict[str, int]:
        """Pid of each executor process that runs now, by executor name."""
        return {
            tag.rpartition(".")[0]: process.pid
            for process, tag in tagged(self.state_dir, self.runtime_dir)
            if "gpuward_executors" in process_cmdline(process) and process_ppid(process) == self.pid
        }

    def engine_core_pids(self) -> dict[str, int]:
        """Pid of each simulated engine's core process, by executor name."""
        return {
            tag.rpartition(".")[0]: process.pid
            for process, tag in tagged(self.state_dir, self.runtime_dir)
            if "engine_process" in process_cmdline(process)
        }

    def engine_api_pids(self) -> dict[str, int]:
        """Pid of each simulated engine's API process, by executor name."""
        return {
            tag.rpartition(".")[0]: process.pid
            for process, tag in tagged(self.state_dir, self.runtime_dir)
            if "gpuward_executors.simulated" in process_cmdline(process)
        }

    def survivors(self) -> list[str]:
        """Everything of this node that lives, the supervisor excepted."""
        return [f"{p.pid} {process_cmdline(p)[:100]}" for p, _ in tagged(self.state_dir, self.runtime_dir)]


def tagged(state_dir: Path, runtime_dir: Path) -> Iterator[tuple[psutil.Process, str]]:
    """Processes of the node with these directories, each with its executor tag."""
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
        except (psutil.Error, OSError):
            continue
        tag = environment.get("GPUWARD_EXECUTOR")
        link = environment.get("GPUWARD_LINK", "") + environment.get("TMPDIR", "")
        if tag is not None and (str(runtime_dir) in link or str(state_dir) in link):
            yield process, tag


def process_cmdline(process: psutil.Process) -> str:
    """Command line, empty when it is gone."""
    try:
        return " ".join(process.cmdline())
    except (psutil.Error, OSError):
        return ""


def process_ppid(process: psutil.Process) -> int:
    """Parent pid, 0 when it is gone."""
    try:
        return process.ppid()
    except (psutil.Error, OSError):
        return 0


#: Below the ports that Linux gives to outgoing connections, which come between a look at a port and its use.
_PORTS = range(10_000, 32_000)
_PORTS_PER_WORKER = len(_PORTS) // 8
#: Ports that this process has given out: the first node may not listen yet when the second one is made.
_given: set[int] = set()


def free_port_block(size: int) -> int:
    """First port of a block that nothing listens on, different for each test worker process."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _PORTS.start + worker % 8 * _PORTS_PER_WORKER
    starts = list(range(first, first + _PORTS_PER_WORKER - size, 16))
    # Several runs of the tests on one machine begin at different places.
    begin = os.getpid() * 7 % len(starts)
    for start in starts[begin:] + starts[:begin]:
        block = range(start, start + size, 16)
        if _given.isdisjoint(block) and all(map(_is_free, block)):
            _given.update(block)
            return start
    raise RuntimeError(f"no block of {size} free ports from {first} on")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
