from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuward_executors.engines.process import EngineProcess, ProcessExit


def outcome(
    folder: Path,
    argv: list[str],
    act: Callable[[EngineProcess, str], None] = lambda _process, _line: None,
    environment: dict[str, str] | None = None,
) -> tuple[ProcessExit, list[str]]:
    """Spawn a command, act on each of its lines, and wait for its end: how it ended, and what it wrote."""

    async def run() -> tuple[ProcessExit, list[str]]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[ProcessExit] = loop.create_future()
        lines: list[str] = []

        def on_line(line: str) -> None:
            lines.append(line)
            act(process, line)

        process = EngineProcess(
            loop,
            argv,
            environment=environment or dict(os.environ),
            folder=folder,
            on_line=on_line,
            on_exit=ended.set_result,
        )
        found = await asyncio.wait_for(ended, 30)
        assert not process.alive
        process.terminate()  # of a process that is gone: nobody else may be hit
        return found, lines

    return asyncio.run(run())


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_an_exit_code_and_all_output_arrive(tmp_path: Path) -> None:
    code = "import sys; print('out'); sys.stdout.flush(); print('err', file=sys.stderr); sys.exit(3)"
    assert outcome(tmp_path, python(code)) == (ProcessExit(exit_code=3), ["out", "err"])


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_death_by_signal_is_told_from_an_exit(tmp_path: Path, number: signal.Signals) -> None:
    code = f"import os, signal; signal.signal({int(number)}, 0) if {int(number)} != 9 else 0;"
    code += f"os.kill(os.getpid(), {int(number)})"
    assert outcome(tmp_path, python(code))[0] == ProcessExit(signal=int(number))


def test_without_pidfds_a_thread_notices_the_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert outcome(tmp_path, python("raise SystemExit(4)"))[0] == ProcessExit(exit_code=4)
    kill = "import os; os.kill(os.getpid(), 9)"
    assert outcome(tmp_path, python(kill))[0] == ProcessExit(signal=9)


def test_term_and_kill_reach_it(tmp_path: Path) -> None:
    # os.write, because print is not safe in a signal handler that may interrupt a print.
    stubborn = "import os, signal, time; signal.signal(15, lambda *_: os.write(1, b'no\\n'));"
    stubborn += "os.write(1, b'up\\n')\nwhile True: time.sleep(600)"

    def act(process: EngineProcess, line: str) -> None:
        if line == "up":
            process.terminate()
        else:
            process.kill()

    assert outcome(tmp_path, python(stubborn), act) == (ProcessExit(signal=9), ["up", "no"])


def test_it_has_no_input_and_no_descriptors_of_ours(tmp_path: Path) -> None:
    ours = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(ours, True)
    code = (
        "import os, sys; print(repr(sys.stdin.read()), sorted(os.listdir('/proc/self/fd'))[:-1], os.getcwd())"
    )
    try:
        _, lines = outcome(tmp_path, python(code))
    finally:
        os.close(ours)
    assert lines == [f"'' ['0', '1', '2'] {tmp_path}"]


def test_it_lives_in_our_process_group_and_environment(tmp_path: Path) -> None:
    code = "import os; print(os.getpgrp(), os.environ['MARK'])"
    _, lines = outcome(tmp_path, python(code), environment={"MARK": "m"})
    assert lines == [f"{os.getpgrp()} m"]


def test_a_command_that_is_not_there_exits_127_and_says_so(tmp_path: Path) -> None:
    found, lines = outcome(tmp_path, ["no-such-engine-command"])
    assert found == ProcessExit(exit_code=127)
    assert "no-such-engine-command" in lines[-1]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        outcome(tmp_path / "gone", python(""))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (ProcessExit(exit_code=1), "exited with code 1"),
        (ProcessExit(signal=11), "was ended by signal 11 (SIGSEGV)"),
        (ProcessExit(signal=99), "was ended by signal 99 (unnamed)"),
        (ProcessExit(), "ended, nobody knows how"),
    ],
)
def test_an_end_reads_as_a_sentence(found: ProcessExit, text: str) -> None:
    assert str(found) == text
