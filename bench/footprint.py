"""``python -m bench.footprint``: memory at rest, and how long a death takes to be seen and mended.

A node with two simulated executors and a development queue. Each round kills one engine with SIGKILL and
reads the node's own log: when the death was seen, and how long the next incarnation took from its spawn to
its hello (the backoff in between is policy, and left out).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import structlog

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.thread import DevQueueThread


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.footprint", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="engines to kill (default 10)")
    parser.add_argument("--rest-s", type=float, default=5.0, help="rest before memory is read (default 5)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with (
        tempfile.TemporaryDirectory(prefix="gpuward-bench-") as folder,
        DevQueueThread(DevQueueConfig()) as queue,
    ):
        node = RunningNode(Path(folder), queue.ws_url)
        try:
            node.wait("executor.ready", 2)
            time.sleep(options.rest_s)  # memory at rest is what is asked for
            print_memory(node)
            seen, back, ready = [], [], []
            for _ in range(options.rounds):
                times = node.kill_one_engine()
                seen.append(times[0])
                back.append(times[1])
                ready.append(times[2])
        finally:
            node.stop()
    for what, values, goal in (
        ("engine killed -> death seen", seen, 50),
        ("executor spawned -> connected", back, 1000),
        ("executor spawned -> engine ready", ready, None),
    ):
        limit = "" if goal is None else f"  (goal: under {goal} ms)"
        print(f"{what:34} median {statistics.median(values):6.0f} ms, worst {max(values):6.0f} ms{limit}")
    return 0


class RunningNode:
    """A supervisor with two executors, and its log."""

    def __init__(self, folder: Path, url: str) -> None:
        config = folder / "node.toml"
        config.write_text(
            f"""
[node]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
log_format = "json"
[source.casola]
url = "{url}"
config_id = "default"
[executors]
gpus = "none"
count = 2
slots = 4
port_base = {24000 + os.getpid() % 200 * 32}
[executors.engine]
kind = "simulated"
[restarts]
backoff_first_s = 0.1
backoff_max_s = 0.1
intensity = 1000
"""
        )
        self.lines: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuward_supervisor", "run", "--config", str(config)],
            stdout=subprocess.PIPE,
        )
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            with contextlib.suppress(ValueError), self._news:
                self.lines.append(json.loads(raw))
                self._news.notify_all()

    def wait(self, event: str, count: int = 1, after: int = 0) -> dict[str, Any]:
        """Wait for the ``count``-th line with this event after line number ``after``."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines[after:] if line["event"] == event]

        with self._news:
            if not self._news.wait_for(lambda: len(found()) >= count, 60):
                raise TimeoutError(f"no {event} within 60 s; last line: {self.lines[-1:]}")
        return found()[count - 1]

    def kill_one_engine(self) -> tuple[float, float, float]:
        """SIGKILL one engine's server; returns the three times in milliseconds."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        victim = next(p for p in children if "gpuward_executors.simulated" in p.cmdline())
        after = len(self.lines)
        killed_s = time.time()
        victim.send_signal(signal.SIGKILL)
        died = self.wait("executor.died", after=after)
        spawned = self.wait("executor.spawned", after=after)
        connected = self.wait("executor.connected", after=after)
        ready = self.wait("executor.ready", after=after)
        return (
            (at(died) - killed_s) * 1000,
            (at(connected) - at(spawned)) * 1000,
            (at(ready) - at(spawned)) * 1000,
        )

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after 20 s."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def at(line: dict[str, Any]) -> float:
    """Time of a log line, seconds since 1970."""
    return datetime.fromisoformat(line["ts"]).timestamp()


def print_memory(node: RunningNode) -> None:
    """Resident memory of each process of the node."""
    supervisor = psutil.Process(node.process.pid)
    for process in (supervisor, *supervisor.children(recursive=True)):
        command = " ".join(process.cmdline())
        kind = (
            "supervisor  (goal: under 45 MiB)"
            if process == supervisor
            else "guardian"
            if "guardian" in command
            else "engine (simulated)"
            if "simulated" in command or "engine_process" in command
            else "executor    (goal: under 45 MiB)"
        )
        print(f"{process.memory_info().rss / 2**20:6.1f} MiB  {kind}")


if __name__ == "__main__":
    raise SystemExit(main())
