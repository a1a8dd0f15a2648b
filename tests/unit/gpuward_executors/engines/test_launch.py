"""The launcher: what a command gets, and what happens without a parent or a command."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpuward_executors.engines import launch

PATIENCE_S = 30.0
LAUNCH = [sys.executable, "-I", "-S", launch.__file__]


def run(*command: str, parent: int | None = None) -> subprocess.CompletedProcess[str]:
    arguments = ["--parent-pid", str(os.getpid() if parent is None else parent), "--", *command]
    return subprocess.run(
        [*LAUNCH, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


def test_the_command_takes_the_place_of_the_launcher() -> None:
    started = subprocess.Popen(
        [*LAUNCH, "--parent-pid", str(os.getpid()), "--", "sh", "-c", 'echo $$ "$1"', "sh", "one word"],
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = started.communicate(timeout=PATIENCE_S)
    assert output.strip() == f"{started.pid} one word"
    assert started.returncode == 0


def test_the_exit_code_is_the_commands() -> None:
    assert run("sh", "-c", "exit 42").returncode == 42


def test_no_core_files() -> None:
    assert run("sh", "-c", "ulimit -c; ulimit -H -c").stdout.split() == ["0", "0"]


def test_the_kernel_takes_it_before_its_parent() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(run("cat", "/proc/self/oom_score_adj").stdout) == min(1000, own + 200)


def test_signals_are_neither_ignored_nor_blocked() -> None:
    program = "import os, signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    program += "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGINT]); "
    program += "os.execv(sys.argv[1], sys.argv[1:])"
    script = [
        *LAUNCH,
        "--parent-pid",
        str(os.getpid()),
        "--",
        "grep",
        "-E",
        "Sig(Blk|Ign)",
        "/proc/self/status",
    ]
    shown = subprocess.run(
        [sys.executable, "-c", program, *script],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    # 32 and 33 belong to the C library, whose posix_spawn ignores them; no program can change that.
    reserved = 1 << 31 | 1 << 32
    assert [int(line.split()[1], 16) & ~reserved for line in shown.stdout.splitlines()] == [0, 0]


def test_it_dies_with_its_parent() -> None:
    code = "import subprocess, sys, os; command = [*sys.argv[1:5], '--parent-pid', str(os.getpid())]; "
    code += "subprocess.Popen([*command, '--', 'sh', '-c', 'echo $$; exec sleep 3600']).wait()"
    with subprocess.Popen([sys.executable, "-c", code, *LAUNCH], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        pidfd = os.pidfd_open(child)
        try:
            os.kill(parent.pid, signal.SIGKILL)
            assert select.select([pidfd], [], [], PATIENCE_S)[0], "the command outlives its parent"
        finally:
            os.close(pidfd)


def test_a_parent_that_died_already_starts_nothing() -> None:
    ended = run("echo", "started", parent=2**22)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"parent is process {os.getpid()}, expected {2**22}" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_an_unknown_command_is_127() -> None:
    ended = run("gpuward-no-such-command")
    assert ended.returncode == 127
    assert "gpuward-no-such-command: not found" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", ["folder", "plain", "no_program"])
def test_what_cannot_be_executed_is_126(kind: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    else:
        path.write_text("neither a program nor a script\n")
        path.chmod(0o755 if kind == "no_program" else 0o644)
    ended = run(str(path))
    assert ended.returncode == 126
    assert f"{path}: cannot be executed" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["--parent-pid", "1"], ["--parent-pid", "1", "--"], ["--parent-pid", "x", "--", "true"], ["true"]],
)
def test_usage(arguments: list[str]) -> None:
    ended = subprocess.run(
        [*LAUNCH, *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert ended.returncode == 2
    assert "expected `--parent-pid N -- COMMAND" in ended.stderr
