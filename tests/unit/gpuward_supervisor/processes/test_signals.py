from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from gpuward_supervisor.processes.signals import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    signals = Signals()
    yield signals
    signals.close()


def wait(signals: Signals) -> list[signal.Signals]:
    assert select.select([signals.fileno()], [], [], 30.0)[0]
    return signals.take()


def test_signals_are_polled_and_taken_once_in_order(signals: Signals) -> None:
    assert signals.take() == []
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert wait(signals) == [signal.SIGTERM, signal.SIGHUP, signal.SIGTERM]
    assert signals.take() == []
    assert select.select([signals.fileno()], [], [], 0)[0] == []


def test_interrupt_from_the_keyboard_is_a_number_not_an_exception(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    assert wait(signals) == [signal.SIGINT]


def test_the_death_of_a_child_wakes_the_loop(signals: Signals) -> None:
    with subprocess.Popen(["true"]):
        assert signal.SIGCHLD in wait(signals)


def test_writing_into_a_closed_pipe_is_an_error_not_a_death(signals: Signals) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with pytest.raises(BrokenPipeError):
        os.write(write_fd, b"x")
    os.close(write_fd)


def test_the_handlers_of_before_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    signals = Signals()
    signals.close()
    signals.close()
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)] == before


@pytest.mark.slow
def test_stacks_of_all_threads_are_dumped_on_sigusr2() -> None:
    program = (
        "import os, signal\n"
        "from gpuward_supervisor.processes.signals import Signals\n"
        "Signals()\n"
        "def where_it_hangs(): os.kill(os.getpid(), signal.SIGUSR2)\n"
        "where_it_hangs()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "where_it_hangs" in done.stderr
