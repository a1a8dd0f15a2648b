"""The engine child by itself: its link, its workers, its deaths."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gpuward_executors.simulated.engine_process import ABORT, ADD, FAULT, LEAVE, SLOW, pack, unpack
from support.engine_child import EngineChild
from support.simulated_engine import is_alive, wait_until

FOREVER = 10**9


def add(request_id: int, tokens: int, fault: str = "") -> tuple[object, ...]:
    return (ADD, request_id, tokens, "stop", 1.0, fault)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_frames_survive_any_cut() -> None:
    values = ["ready", [1, 2, (3, "x")], ([], 0, 0)]
    stream = b"".join(pack(value) for value in values)
    for cut in range(len(stream) + 1):
        buffer = bytearray(stream[:cut])
        got = unpack(buffer)
        buffer += stream[cut:]
        assert got + unpack(buffer) == values
        assert not buffer


def test_a_batch_of_requests_is_answered_in_one_frame() -> None:
    with EngineChild() as child:
        child.wait_ready()
        child.send(add(1, 3), add(2, 4), add(3, 0))
        assert child.frame() == ([(1, 3, "stop"), (2, 4, "stop"), (3, 0, "stop")], 0, 0)


def test_counts_are_reported_when_they_change() -> None:
    with EngineChild(token_s=3600.0, slots=1) as child:
        child.wait_ready()
        child.send(add(1, 5), add(2, 5))
        assert child.frame() == ([], 1, 1)
        child.send((ABORT, 1))
        assert child.frame() == ([], 1, 0)
        child.send((ABORT, 2))
        assert child.frame() == ([], 0, 0)


def test_a_slowed_engine_goes_on_slowly() -> None:
    with EngineChild() as child:
        child.wait_ready()
        child.send((SLOW, 0.5), add(1, 2))
        assert child.frame() == ([], 1, 0)
        assert child.frame() == ([(1, 1, "")], 1, 0)
        assert child.frame() == ([(1, 1, "stop")], 0, 0)


def test_asked_to_leave_it_aborts_everything_and_exits_0() -> None:
    with EngineChild(token_s=3600.0) as child:
        child.wait_ready()
        child.send(add(1, 5), (LEAVE,))
        assert child.frame() == ([(1, 0, "abort")], 0, 0)
        assert child.frame() is None
        assert child.exit_code() == 0


def test_sigterm_aborts_everything_and_exits_0() -> None:
    with EngineChild(token_s=3600.0) as child:
        child.wait_ready()
        child.send(add(1, 5))
        assert child.frame() == ([], 1, 0)
        os.kill(child.pid, signal.SIGTERM)
        assert child.frame() == ([(1, 0, "abort")], 0, 0)
        assert child.exit_code() == 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("segv", -signal.SIGSEGV),
        ("abort", -signal.SIGABRT),
        ("kill", -signal.SIGKILL),
        ("exit0", 0),
        ("oom", 1),
    ],
)
@pytest.mark.parametrize("by_request", [True, False])
def test_deaths(fault: str, code: int, by_request: bool) -> None:
    with EngineChild() as child:
        child.wait_ready()
        child.send(add(1, 5, fault) if by_request else (FAULT, fault))
        if by_request:
            # The request was running when it happened, and never ended.
            assert child.frame() == ([], 1, 0)
        assert child.frame() is None
        assert child.exit_code() == code


@pytest.mark.parametrize(("fault", "code"), [("kill", -signal.SIGKILL), ("oom", 1), ("exit0", 0)])
def test_deaths_before_it_is_ready(fault: str, code: int) -> None:
    with EngineChild(startup_fault=fault) as child:
        assert child.frame() is None
        assert child.exit_code() == code


def test_out_of_memory_names_itself_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with EngineChild() as child:
        child.wait_ready()
        child.send((FAULT, "oom"))
        child.exit_code()
    log = capfd.readouterr().out
    assert "ERROR" in log
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate" in log


def test_a_hung_engine_lives_and_is_deaf_to_sigterm() -> None:
    with EngineChild() as child:
        child.wait_ready()
        child.send(add(1, 5, "hang"))
        assert child.frame() == ([], 1, 0)
        wait_until(lambda: sigterm_is_ignored(child.pid), "the engine child hangs")
        os.kill(child.pid, signal.SIGTERM)
        child.send((ABORT, 1))
        assert child.is_running()


def test_a_stopped_engine_goes_on_after_sigcont() -> None:
    with EngineChild() as child:
        child.wait_ready()
        child.send(add(1, 5, "stop"))
        assert child.frame() == ([], 1, 0)
        wait_until(
            lambda: f"{child.pid} (SIM::EngineCore) T" in stat_of(child.pid), "the engine child is stopped"
        )
        os.kill(child.pid, signal.SIGCONT)
        assert child.frame() == ([(1, 5, "stop")], 0, 0)


def test_an_orphan_lives_on_and_ignores_sigterm() -> None:
    """As seen of the real one: only SIGKILL ends an engine whose API process was killed."""
    with EngineChild(token_s=3600.0) as child:
        child.wait_ready()
        child.send(add(1, FOREVER))
        assert child.frame() == ([], 1, 0)
        child.socket.close()
        wait_until(lambda: sigterm_is_ignored(child.pid), "the engine child notices that it is alone")
        os.kill(child.pid, signal.SIGTERM)
        assert child.is_running()


def test_a_dead_worker_takes_the_engine_along(capfd: pytest.CaptureFixture[str]) -> None:
    with EngineChild(workers=2) as child:
        child.wait_ready()
        workers = children_of(child.pid)
        wait_until(
            lambda: [name_of(one) for one in workers] == ["SIM::Worker", "SIM::Worker_TP1"], "workers run"
        )
        os.kill(workers[0], signal.SIGKILL)
        assert child.exit_code() == 1
        os.kill(workers[1], signal.SIGKILL)
    assert "Worker proc VllmWorker-0 died unexpectedly" in capfd.readouterr().out


def test_a_worker_notices_that_its_engine_is_gone(capfd: pytest.CaptureFixture[str]) -> None:
    seen = ""

    def worker_spoke() -> bool:
        nonlocal seen
        seen += capfd.readouterr().out
        return "Parent process exited, terminating worker queues" in seen

    with EngineChild(workers=1) as child:
        child.wait_ready()
        (worker,) = children_of(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        assert child.exit_code() == -signal.SIGKILL
        wait_until(worker_spoke, "the worker says that its parent is gone")
        # It lingers for two seconds, as the real one; the test does not.
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not is_alive(worker), "the worker is gone")


def test_a_stray_leaves_the_session_and_outlives_the_engine() -> None:
    with EngineChild(setsid_grandchild=True) as child:
        child.wait_ready()
        (stray,) = children_of(child.pid)
        try:
            assert os.getsid(stray) == stray
            wait_until(lambda: sigterm_is_ignored(stray), "the stray ignores SIGTERM")
            os.kill(child.pid, signal.SIGKILL)
            child.exit_code()
            os.kill(stray, signal.SIGTERM)
            assert is_alive(stray)
        finally:
            os.kill(stray, signal.SIGKILL)


def test_segments_are_made(tmp_path: Path) -> None:
    path = tmp_path / "psm_test"
    with EngineChild(shm_segments=[str(path)]) as child:
        child.wait_ready()
        assert path.stat().st_size == 4096


def test_start_up_lines_are_printed_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    with EngineChild(startup_log=True) as child:
        child.wait_ready()
    log = capfd.readouterr().out
    assert "Initializing a V1 LLM engine" in log
    assert "Loading weights took" in log
    assert "init engine" in log


def stat_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text()


def sigterm_is_ignored(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    ignored = int(status.split("SigIgn:")[1].split()[0], 16)
    return bool(ignored & 1 << signal.SIGTERM - 1)
