"""How the program starts, and ends before it serves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.simulated_engine import PATIENCE_S, SimulatedEngine, is_alive, wait_until

pytestmark = pytest.mark.slow

PROGRAM = [sys.executable, "-m", "gpuward_executors.simulated"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_bad_flag_ends_in_code_2_with_usage_on_stderr() -> None:
    ended = subprocess.run(
        [*PROGRAM, "serve", "m", "--port", "x"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "usage:" in ended.stderr


def test_a_port_in_use_ends_in_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        command = [*PROGRAM, "serve", "m", "--host", "127.0.0.1", "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "OSError: [Errno 98] Address already in use" in ended.stderr


def test_while_it_starts_the_port_is_taken_and_connections_are_refused() -> None:
    port = free_port()
    with SimulatedEngine("--startup-s", "3600", "--startup-log", "--port", str(port), ready=False) as engine:
        wait_until(lambda: len(engine.processes("SIM::EngineCore")) == 1, "the engine child starts up")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        child = engine.child()
        os.kill(engine.pid, signal.SIGTERM)
        assert engine.wait() == -signal.SIGTERM
        assert not is_alive(child)


def test_processes_are_named_share_a_group_and_keep_the_environment() -> None:
    with SimulatedEngine(
        "--workers", "1", "--max-logprobs", "5", environment={"GPUWARD_TEST_TAG": "t1"}
    ) as engine:
        engine.wait_for_line(r"WARNING .* ignored: --max-logprobs 5$")
        pids = {engine.child(name) for name in ("SIM::APIServer", "SIM::EngineCore", "SIM::Worker")}
        assert set(engine.processes()) == pids
        for pid in pids:
            assert os.getpgid(pid) == engine.pid
            assert b"GPUWARD_TEST_TAG=t1\0" in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_stray_grandchild_keeps_the_environment_outside_the_session() -> None:
    with SimulatedEngine("--setsid-grandchild", environment={"GPUWARD_TEST_TAG": "t2"}) as engine:
        path = Path(f"/proc/{engine.child()}/task/{engine.child()}/children")
        (stray,) = (int(pid) for pid in path.read_text().split())
        try:
            assert stray not in engine.processes()
            assert b"GPUWARD_TEST_TAG=t2\0" in Path(f"/proc/{stray}/environ").read_bytes()
            os.kill(engine.pid, signal.SIGTERM)
            assert engine.wait() == 0
            assert is_alive(stray)
        finally:
            os.kill(stray, signal.SIGKILL)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a writable /dev/shm")
def test_segments_are_left_behind_only_by_sigkill() -> None:
    with SimulatedEngine("--shm-segments", "2") as engine:
        segments = sorted(Path("/dev/shm").glob(f"psm_sim_{engine.pid}_*"))
        assert len(segments) == 2
        os.kill(engine.pid, signal.SIGTERM)
        assert engine.wait() == 0
        assert not any(segment.exists() for segment in segments)


def test_memory_stays_small() -> None:
    with SimulatedEngine() as engine:
        assert engine.chat("x")[0] == 200
        assert resident_bytes(engine.pid) < 45 * 2**20
        assert resident_bytes(engine.child()) < 20 * 2**20


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
