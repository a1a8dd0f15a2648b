"""What the loop listens to becomes events: messages, posts, ends of processes, signals, a cured journal."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gpuward_ipc import messages as m
from gpuward_ipc.types import ExecutorName, Fence, Incarnation, JobId
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events as e
from gpuward_supervisor.inlets import (
    SOURCE_EVENTS_PER_TURN,
    ExecutorInlet,
    JournalInlet,
    ProcessInlet,
    SignalInlet,
    SourceInlet,
)
from gpuward_supervisor.outbox import RETRY_S
from gpuward_supervisor.processes.base import Exit, OutputLine, Swept
from gpuward_supervisor.processes.signals import Signals
from support.shell_parts import CASOLA, GPU0, ONE, PATIENCE_S, Shell

WHO: dict[str, Any] = {"executor": GPU0, "incarnation": ONE}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


def readable(fd: int, within_s: float = 0.0) -> bool:
    return bool(select.select([fd], [], [], within_s)[0])


# ---------------------------------------------------------------- executors and sources


def test_messages_of_executors_are_events(shell: Shell) -> None:
    inlet = ExecutorInlet(shell.link, shell.router.socket)
    assert inlet.take(0.0) == []
    shell.peer().send(m.Ready(4, "0.32.0"))
    assert inlet.pollable.poll(int(PATIENCE_S * 1000))
    assert inlet.take(0.0) == [e.ExecutorReady(**WHO, slots=4, engine_version="0.32.0")]
    assert inlet.next_deadline() is None


def test_posts_of_sources_are_taken_in_shares_and_the_rest_stays_readable(shell: Shell) -> None:
    inlet = SourceInlet(shell.mailbox)
    assert not readable(inlet.pollable)
    posted = [
        e.JobRevoked(source=CASOLA, job_id=JobId(str(number)), reason="")
        for number in range(SOURCE_EVENTS_PER_TURN + 1)
    ]
    shell.mailbox.post_all(posted)
    assert readable(inlet.pollable)
    assert inlet.take(0.0) == posted[:-1]
    assert readable(inlet.pollable)
    assert inlet.take(0.0) == posted[-1:]
    assert not readable(inlet.pollable)
    assert inlet.next_deadline() is None


# ---------------------------------------------------------------- processes


class Listener:
    """A process inlet, and what it told besides events."""

    def __init__(self, shell: Shell) -> None:
        self.printed: list[OutputLine] = []
        self.swept: list[tuple[ExecutorName, Incarnation]] = []
        self.inlet = ProcessInlet(shell.host, self.printed.append, lambda *who: self.swept.append(who))


@pytest.fixture
def listener(shell: Shell) -> Listener:
    return Listener(shell)


@pytest.mark.parametrize(("exit_code", "number"), [(0, None), (3, None), (None, 11)])
def test_the_end_of_a_process_is_an_event(
    shell: Shell, listener: Listener, exit_code: int | None, number: int | None
) -> None:
    shell.host.happen(Exit(GPU0, ONE, 4711, exit_code, number))
    assert readable(listener.inlet.pollable)
    assert listener.inlet.take(0.0) == [e.ExecutorExited(**WHO, exit_code=exit_code, signal=number)]
    assert (listener.printed, listener.swept) == ([], [])


def test_a_sweep_is_an_event_and_its_folder_can_go(shell: Shell, listener: Listener) -> None:
    shell.host.happen(Swept(GPU0, ONE, 3))
    assert listener.inlet.take(0.0) == [e.ExecutorSwept(**WHO, leftovers=3)]
    assert listener.swept == [(GPU0, ONE)]


def test_output_is_no_event_of_the_core(shell: Shell, listener: Listener) -> None:
    lines = [OutputLine(GPU0, ONE, "one"), OutputLine(GPU0, ONE, "two")]
    shell.host.happen(lines[0], Exit(GPU0, ONE, 1, 1, None), lines[1], Swept(GPU0, ONE, 0))
    assert [type(event) for event in listener.inlet.take(0.0)] == [e.ExecutorExited, e.ExecutorSwept]
    assert listener.printed == lines


def test_the_host_is_asked_with_the_loops_time_and_says_when_next(shell: Shell, listener: Listener) -> None:
    assert listener.inlet.next_deadline() is None
    shell.host.due_s = 12.5
    assert listener.inlet.next_deadline() == 12.5
    listener.inlet.take(13.0)
    assert shell.host.collected_at_s == [13.0]


# ---------------------------------------------------------------- signals


class Signalled:
    """A signal inlet that gets real signals."""

    def __init__(self) -> None:
        self.signals = Signals()
        self.buried_at_s: list[float] = []
        self.inlet = SignalInlet(self.signals, self.buried_at_s.append)

    def take_after(self, *numbers: signal.Signals) -> list[e.SupervisorEvent]:
        for number in numbers:
            os.kill(os.getpid(), number)
        assert readable(self.inlet.pollable, PATIENCE_S)
        return list(self.inlet.take(0.0))


@pytest.fixture
def signalled() -> Iterator[Signalled]:
    signalled = Signalled()
    yield signalled
    signalled.signals.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_each_further_one_insists(
    signalled: Signalled, number: signal.Signals
) -> None:
    assert signalled.take_after(number) == [e.StopRequested(reason=number.name)]
    assert signalled.take_after(signal.SIGINT) == [e.StopNow(reason="SIGINT")]
    assert signalled.take_after(signal.SIGTERM) == [e.StopNow(reason="SIGTERM")]
    assert signalled.inlet.next_deadline() is None


def test_two_signals_at_once_are_both_heard(signalled: Signalled) -> None:
    with capture_logs() as logs:
        taken = signalled.take_after(signal.SIGTERM, signal.SIGTERM)
    assert taken == [e.StopRequested(reason="SIGTERM"), e.StopNow(reason="SIGTERM")]
    assert [(line["event"], line["signal"], line["repeated"]) for line in logs] == [
        ("node.signal", "SIGTERM", False),
        ("node.signal", "SIGTERM", True),
    ]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_without_a_meaning_is_noted_and_does_not_count_as_the_first(
    signalled: Signalled, number: signal.Signals
) -> None:
    with capture_logs() as logs:
        assert signalled.take_after(number) == []
    assert [(line["event"], line["signal"]) for line in logs] == [("node.signal_ignored", number.name)]
    assert signalled.take_after(signal.SIGTERM) == [e.StopRequested(reason="SIGTERM")]


def test_the_end_of_a_child_has_the_dead_buried_without_a_word(signalled: Signalled) -> None:
    with capture_logs() as logs:
        assert signalled.take_after(signal.SIGCHLD) == []
    assert logs == []
    assert signalled.buried_at_s == [0.0]


# ---------------------------------------------------------------- the journal


@pytest.fixture
def without_room(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, journal_works=False)
    yield shell
    shell.close()


def test_a_working_journal_wants_nothing(shell: Shell) -> None:
    inlet = JournalInlet(shell.outbox)
    assert inlet.pollable is None
    assert inlet.next_deadline() is None


def test_a_failed_journal_is_tried_at_once_then_from_time_to_time_until_it_works(without_room: Shell) -> None:
    shell = without_room
    inlet = JournalInlet(shell.outbox)
    remember = do.Remember(source=CASOLA, job_id=JobId("j"), fence=Fence(1), body=shell.bodies.put(b"{}"))
    assert [type(event) for event in shell.perform(remember)] == [e.JournalFailed]
    due_s = inlet.next_deadline()
    assert due_s is not None and due_s <= 100.0
    assert inlet.take(100.0) == []
    assert inlet.next_deadline() == 100.0 + RETRY_S
    assert inlet.take(101.0) == []
    assert inlet.next_deadline() == 101.0 + RETRY_S
    shell.journal._min_free_bytes = 0  # the disk gets room
    assert inlet.take(102.0) == [e.JournalRestored()]
    assert inlet.next_deadline() is None
    assert [str(record.job_id) for record in shell.journal.owed()] == ["j"]
