"""``python -m bench``: the whole path beside its two baselines, in one run on one machine.

Rounds of the three candidates take turns, so that a noisy neighbour hits all of them alike; the table
shows medians over the rounds and the ratios, the JSON file holds every round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.bare_zmq import Bare
from bench.closed_loop_queue import ClosedLoop, Server

WINDOWS = (1, 64, 512)
PATHS = ("gpuward", "gpuward-persisted", "bare-websocket", "bare-zmq")


def main() -> int:
    """Measure and print; exit 0."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds per window and candidate (default 5)")
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs per round at window 64 and more")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the JSON")
    options = parser.parse_args()
    results = asyncio.run(measure(options.rounds, options.jobs))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"path-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(results, indent=1))
    print_table(results)
    print(f"\nall rounds: {path}")
    return 0


async def measure(rounds: int, jobs: int) -> dict[str, Any]:
    """All rounds of all candidates; returns raw figures."""
    raw: dict[str, dict[int, list[dict[str, float]]]] = {p: {w: [] for w in WINDOWS} for p in PATHS}
    usage: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpuward-bench-") as folder:
        async with Server("transient") as fast, Server("persisted") as durable, Server("transient") as plain:
            nodes = [
                start_node(Path(folder) / "t", fast.port, max(WINDOWS)),
                start_node(Path(folder) / "p", durable.port, max(WINDOWS)),
                subprocess.Popen(
                    [sys.executable, "-m", "bench.bare_websocket", f"ws://127.0.0.1:{plain.port}"]
                ),
            ]
            bare = Bare()
            try:
                workers = [await asyncio.wait_for(s.worker, 60) for s in (fast, durable, plain)]
                for worker, window in [(w, 64) for w in workers]:
                    await worker.round(1000, window)  # warm-up
                for number in range(rounds):
                    for window in WINDOWS:
                        count = jobs if window > 1 else max(200, jobs // 10)
                        for name, worker in zip(PATHS[:3], workers, strict=True):
                            raw[name][window].append(await one(worker, count, window))
                        raw["bare-zmq"][window].append(summary(*bare.round(count, window)))
                        print(f"round {number + 1}/{rounds} window {window} done", file=sys.stderr)
                usage = {"supervisor_rss_mib": rss(nodes[0].pid), "tree": tree(nodes[0].pid)}
            finally:
                bare.close()
                for node in nodes:
                    node.send_signal(signal.SIGTERM)
                for node in nodes:
                    try:
                        node.wait(20)
                    except subprocess.TimeoutExpired:
                        node.kill()
                        node.wait()
    return {
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()},
        "payload_bytes": 200,
        "jobs_per_round": jobs,
        "rounds": raw,
        "usage": usage,
    }


def start_node(folder: Path, port: int, slots: int) -> subprocess.Popen[bytes]:
    """Start a supervisor with one echo executor, connected to the queue on ``port``."""
    folder.mkdir()
    config = folder / "node.toml"
    config.write_text(
        f"""
[node]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
log_level = "warning"
[source.casola]
url = "ws://127.0.0.1:{port}"
config_id = "bench"
[executors]
gpus = "none"
count = 1
slots = {slots}
[executors.engine]
kind = "echo"
"""
    )
    return subprocess.Popen([sys.executable, "-m", "gpuward_supervisor", "run", "--config", str(config)])


async def one(worker: ClosedLoop, jobs: int, window: int) -> dict[str, float]:
    """One round on one worker."""
    return summary(*await asyncio.wait_for(worker.round(jobs, window), 300))


def summary(seconds: float, latencies: list[float]) -> dict[str, float]:
    """Rate and latency percentiles of a round."""
    ordered = sorted(latencies)
    return {
        "jobs_per_s": len(ordered) / seconds,
        "p50_us": ordered[len(ordered) // 2] * 1e6,
        "p99_us": ordered[int(len(ordered) * 0.99)] * 1e6,
    }


def rss(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return psutil.Process(pid).memory_info().rss / 2**20


def tree(pid: int) -> list[dict[str, Any]]:
    """Resident memory and CPU seconds of a process' children."""
    return [
        {
            "pid": c.pid,
            "cmd": " ".join(c.cmdline()[:5]),
            "rss_mib": rss(c.pid),
            "cpu_s": sum(c.cpu_times()[:2]),
        }
        for c in psutil.Process(pid).children(recursive=True)
    ]


def print_table(results: dict[str, Any]) -> None:
    """The medians and the ratios."""
    median: dict[tuple[str, int, str], float] = {}
    for name, windows in results["rounds"].items():
        for window, measured in windows.items():
            for key in ("jobs_per_s", "p50_us", "p99_us"):
                median[name, window, key] = statistics.median(r[key] for r in measured)
    print(f"{'path':20} {'window':>6} {'jobs/s':>9} {'p50 µs':>9} {'p99 µs':>9} {'/ zmq':>7} {'p50 / ws':>9}")
    for window in WINDOWS:
        for name in PATHS:
            rate = median[name, window, "jobs_per_s"]
            to_zmq = rate / median["bare-zmq", window, "jobs_per_s"]
            p50, p99 = median[name, window, "p50_us"], median[name, window, "p99_us"]
            to_websocket = p50 / median["bare-websocket", window, "p50_us"]
            figures = f"{rate:>9.0f} {p50:>9.0f} {p99:>9.0f} {to_zmq:>7.2f} {to_websocket:>9.2f}"
            print(f"{name:20} {window:>6} {figures}")
    usage = results["usage"]
    if usage:
        print(f"\nsupervisor RSS {usage['supervisor_rss_mib']:.1f} MiB")
        for child in usage["tree"]:
            print(f"  child RSS {child['rss_mib']:.1f} MiB  cpu {child['cpu_s']:.1f} s  {child['cmd'][:90]}")
    goal = min(10_000.0, 0.25 * median["bare-zmq", 64, "jobs_per_s"])
    reached = median["gpuward", 64, "jobs_per_s"]
    ratio = median["gpuward", 1, "p50_us"] / median["bare-websocket", 1, "p50_us"]
    print(f"\nwindow 64: {reached:.0f} jobs/s, goal {goal:.0f}: {verdict(reached >= goal)}")
    print(f"window 1: p50 {ratio:.2f} x bare websocket, goal 2: {verdict(ratio <= 2)}")


def verdict(reached: bool) -> str:
    """In words."""
    return "reached" if reached else "NOT reached"


if __name__ == "__main__":
    raise SystemExit(main())
