from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuward_ipc.types import ExecutorName, Incarnation
from gpuward_supervisor.processes.base import Exit, OutputLine, Swept
from gpuward_supervisor.processes.posix import PosixProcessHost
from support.process_trees import (
    FIRST,
    GPU0,
    SHARED_MEMORY_TREE,
    TREE,
    Pump,
    alive,
    killed_at_the_end,
    launch,
    pids_in,
    python,
    wait_dead,
    wait_until,
)

pytestmark = pytest.mark.slow  # real processes; most take a tenth of a second


def make_host(tmp_path: Path, with_guardian: bool = False) -> PosixProcessHost:
    return PosixProcessHost(
        node=f"test.{os.getpid()}.{tmp_path.name}", runtime_dir=tmp_path / "run", with_guardian=with_guardian
    )


@pytest.fixture
def host(tmp_path: Path) -> Iterator[PosixProcessHost]:
    host = make_host(tmp_path)
    yield host
    host.close()


@pytest.fixture
def pump(host: PosixProcessHost) -> Pump:
    return Pump(host)


def start_tree(pump: Pump, folder: Path, incarnation: int = 1) -> dict[str, int]:
    folder.mkdir()
    pump.host.spawn(launch(python(TREE, folder), GPU0, Incarnation(incarnation)))
    pump.until_line("up")
    return pids_in(folder)


# ---------------------------------------------------------------- starts, output, exit status


@pytest.mark.parametrize(
    ("program", "exit_code", "number"),
    [
        ("pass", 0, None),
        ("raise SystemExit(137)", 137, None),
        ("import os; os.kill(os.getpid(), 9)", None, signal.SIGKILL),
        ("import os; os.abort()", None, signal.SIGABRT),
    ],
)
def test_an_exit_is_told_from_a_signal(
    pump: Pump, program: str, exit_code: int | None, number: int | None
) -> None:
    pid = pump.host.spawn(launch(python(program)))
    assert pump.host.pid_of(GPU0, FIRST) == pid
    pump.until_swept()
    assert pump.happened == [Exit(GPU0, FIRST, pid, exit_code, number), Swept(GPU0, FIRST, 0)]
    assert pump.host.pid_of(GPU0, FIRST) is None
    assert not Path(f"/proc/{pid}").exists()  # reaped


def test_output_comes_before_the_exit_and_its_end_stays_as_evidence(pump: Pump) -> None:
    program = "import os; print('hello', flush=True); os.write(2, b'Fatal: no newline'); os._exit(3)"
    pump.host.spawn(launch(python(program)))
    pump.until_swept()
    assert [type(event) for event in pump.happened] == [OutputLine, OutputLine, Exit, Swept]
    assert pump.lines == ["hello", "Fatal: no newline"]
    assert pump.host.tail(GPU0, FIRST) == ["hello", "Fatal: no newline"]
    assert pump.host.tail(GPU0, Incarnation(2)) == []


INTROSPECTION = """
import os, signal
print("env", *sorted(os.environ))
print("tag", os.environ["GPUWARD_EXECUTOR"], os.environ["GPUWARD_NODE"])
print("ids", os.getsid(0), os.getpgid(0), os.environ["GPUWARD_PARENT"])
print("fds", *sorted(map(int, os.listdir("/proc/self/fd"))), os.environ["GPUWARD_DEATH_FD"])
print("cwd", os.getcwd(), flush=True)
signal.pause()
"""


def test_an_incarnation_gets_its_session_its_tags_and_nothing_that_is_not_its_own(
    pump: Pump, tmp_path: Path
) -> None:
    work_dir = tmp_path / "run" / "gpu0.1"
    work_dir.mkdir()
    pid = pump.host.spawn(launch(python(INTROSPECTION), work_dir=work_dir))
    assert pump.until_line("cwd") == f"cwd {work_dir}"
    assert pump.until_line("env").split()[1:] == [
        "GPUWARD_DEATH_FD", "GPUWARD_EXECUTOR", "GPUWARD_NODE", "GPUWARD_PARENT", "LC_CTYPE", "PATH",
    ]  # fmt: skip
    assert pump.until_line("tag") == f"tag gpu0.1 {pump.host.tag.partition('=')[2]}"
    assert pump.until_line("ids") == f"ids {pid} {pid} {os.getpid()}"
    *fds, death_fd = pump.until_line("fds").split()[1:]
    assert fds[:3] == ["0", "1", "2"]
    assert death_fd in fds
    assert len(fds) == 5  # and the one by which the folder was listed
    assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] == 0
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == min(1000, own + 500)


@pytest.mark.parametrize("argv", [("/nonexistent/program",), ("bad\0argument",)])
def test_a_start_that_fails_is_an_error_and_leaves_nothing(pump: Pump, argv: tuple[str, ...]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"nonexistent|gpu0 cannot be started"):
        pump.host.spawn(launch(argv))
    assert len(os.listdir("/proc/self/fd")) == before
    assert pump.host.pid_of(GPU0, FIRST) is None


def test_terminate_is_a_request_and_unknown_incarnations_are_ignored(pump: Pump) -> None:
    pump.host.spawn(launch(python("import signal; print('up', flush=True); signal.pause()")))
    pump.until_line("up")
    pump.host.terminate(GPU0, Incarnation(2))
    pump.host.kill(ExecutorName("nobody"), FIRST)
    pump.host.terminate(GPU0, FIRST)
    pump.until_swept()
    (event,) = pump.of(Exit)
    assert isinstance(event, Exit)
    assert event.signal == signal.SIGTERM
    pump.host.terminate(GPU0, FIRST)
    pump.host.kill(GPU0, FIRST)


def test_without_pidfds_an_exit_is_still_noticed(
    pump: Pump, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forbidden(pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    pids = start_tree(pump, tmp_path / "tree")
    os.kill(pids["leader"], signal.SIGKILL)
    pump.until_swept()
    wait_dead(list(pids.values()))


# ---------------------------------------------------------------- nothing is left


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_the_tree_dies_with_its_leader(pump: Pump, tmp_path: Path, number: int) -> None:
    pids = start_tree(pump, tmp_path / "tree")
    os.kill(pids["leader"], number)
    pump.until_swept()
    assert not any(map(alive, pids.values()))
    assert pump.happened[-1] == Swept(GPU0, FIRST, leftovers=1)
    # Adopted and reaped: not even zombies are left.
    assert not any(Path(f"/proc/{pid}").exists() for pid in (pids["leader"], pids["child"]))


def test_kill_takes_the_whole_tree(pump: Pump, tmp_path: Path) -> None:
    pids = start_tree(pump, tmp_path / "tree")
    pump.host.kill(GPU0, FIRST)
    pump.host.kill(GPU0, FIRST)
    pump.until_swept()
    wait_dead(list(pids.values()))


def test_a_neighbour_notices_nothing(pump: Pump, tmp_path: Path) -> None:
    doomed = start_tree(pump, tmp_path / "tree")
    neighbour = pump.host.spawn(launch(("sleep", "600"), ExecutorName("gpu1")))
    successor_like = pump.host.spawn(launch(("sleep", "600"), GPU0, Incarnation(11)))
    pump.host.kill(GPU0, FIRST)
    pump.until_swept()
    wait_dead(list(doomed.values()))
    assert alive(neighbour)
    assert alive(successor_like)
    assert pump.host.pid_of(ExecutorName("gpu1"), FIRST) == neighbour


def test_several_deaths_at_once_are_all_buried(pump: Pump) -> None:
    names = [ExecutorName(f"gpu{number}") for number in range(8)]
    for name in names:
        pump.host.spawn(launch(("sleep", "600"), name))
    for name in names:
        pump.host.kill(name, FIRST)
    pump.until_swept(len(names))
    assert {event.executor for event in pump.of(Swept)} == set(names)


def test_the_working_folder_goes_with_the_incarnation(pump: Pump, tmp_path: Path) -> None:
    work_dir = tmp_path / "run" / "gpu0.1"
    (work_dir / "tmp" / "deep").mkdir(parents=True)
    (work_dir / "tmp" / "deep" / "file").write_text("x")
    pump.host.spawn(launch(python("pass"), work_dir=work_dir))
    pump.until_swept()
    assert not work_dir.exists()
    assert (tmp_path / "run").exists()


def test_an_orphan_that_holds_the_output_is_killed_and_its_last_words_are_kept(pump: Pump) -> None:
    program = (
        "import os, signal\n"
        "if os.fork() == 0:\n    os.setsid(); os.write(1, b'escaped\\nhalf a line')\n"
        "    signal.pause()\n"
        "signal.sigtimedwait([signal.SIGUSR1], 600)\n"
    )
    pump.host.spawn(launch(python(program)))
    pump.until_line("escaped")
    pump.host.kill(GPU0, FIRST)
    pump.until_swept()
    assert pump.lines == ["escaped", "half a line"]


def test_no_shared_memory_is_left_when_a_multiprocessing_tree_is_killed(pump: Pump, tmp_path: Path) -> None:
    program = tmp_path / "tree.py"
    program.write_text(SHARED_MEMORY_TREE)
    pump.host.spawn(launch((sys.executable, str(program))))
    segments = [Path("/dev/shm", name) for name in pump.until_line("shm").split()[1:]]
    tracker = int(pump.until_line("tracker").split()[1])
    assert all(segment.exists() for segment in segments)
    pump.host.kill(GPU0, FIRST)
    pump.until_swept()
    wait_dead([tracker])
    assert not any(segment.exists() for segment in segments)


def test_no_shared_memory_is_left_when_even_the_tracker_was_killed(pump: Pump, tmp_path: Path) -> None:
    program = tmp_path / "tree.py"
    program.write_text(SHARED_MEMORY_TREE)
    pump.host.spawn(launch((sys.executable, str(program))))
    segments = [Path("/dev/shm", name) for name in pump.until_line("shm").split()[1:]]
    tracker = int(pump.until_line("tracker").split()[1])
    os.kill(tracker, signal.SIGKILL)
    pump.host.kill(GPU0, FIRST)
    pump.until_swept()
    assert not any(segment.exists() for segment in segments)


def test_shared_memory_of_a_tree_that_died_whole_is_swept_once_it_is_old_enough(pump: Pump) -> None:
    segment = Path(f"/dev/shm/psm_gpuward_test_{os.getpid()}")
    program = f"import os; open({str(segment)!r}, 'wb').write(bytes(4096)); os.kill(os.getpid(), 9)"
    pump.host.spawn(launch(python(program)))
    pump.until_swept()
    pump.until(lambda: not segment.exists(), "the late sweep")


# ---------------------------------------------------------------- the whole node


def test_kill_all_leaves_nobody(pump: Pump, tmp_path: Path) -> None:
    pids = start_tree(pump, tmp_path / "tree")
    other = pump.host.spawn(launch(("sleep", "600"), ExecutorName("gpu1")))
    assert pump.host.kill_all(within_s=30) == 0
    assert not any(map(alive, [*pids.values(), other]))
    assert pump.host.pid_of(GPU0, FIRST) is None
    assert pump.host.kill_all(within_s=30) == 0


def test_close_leaves_no_process_no_folder_and_no_descriptor(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    host = make_host(tmp_path, with_guardian=True)
    guardian = host.guardian_pid
    assert guardian is not None
    pump = Pump(host)
    pids = start_tree(pump, tmp_path / "tree")
    (tmp_path / "run" / "executors.sock").touch()
    host.close()
    host.close()
    assert not any(map(alive, [*pids.values(), guardian]))
    assert not (tmp_path / "run").exists()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_dead_guardian_is_replaced(tmp_path: Path) -> None:
    host = make_host(tmp_path, with_guardian=True)
    try:
        first = host.guardian_pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        pump = Pump(host)
        pump.until(lambda: host.guardian_pid not in {None, first}, "another guardian")
    finally:
        host.close()


#: A supervisor with one tree; says the pid of its guardian and runs until it is killed.
SUPERVISOR = """
import signal, sys
from pathlib import Path
from support.process_trees import FIRST, GPU0, Pump, TREE, launch, python
from gpuward_supervisor.processes.posix import PosixProcessHost
folder = Path(sys.argv[1])
host = PosixProcessHost(node=sys.argv[2], runtime_dir=folder / "run")
pump = Pump(host)
host.spawn(launch(python(TREE, folder / "tree")))
pump.until_line("up")
print(host.guardian_pid, flush=True)
while True:
    pump.turn()
"""


def start_supervisor(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int, dict[str, int]]:
    (tmp_path / "tree").mkdir()
    tests = Path(__file__).parents[3]
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), f"test.{tmp_path}"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tests)},
    )
    assert supervisor.stdout is not None
    return supervisor, int(supervisor.stdout.readline()), pids_in(tmp_path / "tree")


def test_when_the_supervisor_is_killed_nothing_outlives_it(tmp_path: Path) -> None:
    supervisor, guardian, pids = start_supervisor(tmp_path)
    with supervisor, killed_at_the_end(pids):
        supervisor.kill()
        supervisor.wait()
        killed_s = time.monotonic()
        wait_dead(list(pids.values()))
        print(f"gone {time.monotonic() - killed_s:.3f} s after the supervisor")
        wait_until(lambda: not alive(guardian), "the guardian's end")
        assert not (tmp_path / "run").exists()


def test_what_outlived_supervisor_and_guardian_ends_at_the_next_start(tmp_path: Path) -> None:
    supervisor, guardian, pids = start_supervisor(tmp_path)
    with supervisor, killed_at_the_end(pids):
        os.kill(guardian, signal.SIGSTOP)  # so that the supervisor does not replace it
        supervisor.kill()
        supervisor.wait()
        os.kill(guardian, signal.SIGKILL)
        assert all(map(alive, pids.values()))
        host = PosixProcessHost(node=f"test.{tmp_path}", runtime_dir=tmp_path / "run", with_guardian=False)
        try:
            assert not any(map(alive, pids.values()))
        finally:
            host.close()
