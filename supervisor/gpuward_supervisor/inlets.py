"""What the loop listens to: executors' messages, sources, processes, signals, and the journal's recovery."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import assert_never

import structlog
import zmq

from gpuward_ipc.types import ExecutorName, Incarnation
from gpuward_supervisor.core import events
from gpuward_supervisor.executor_link import ExecutorLink
from gpuward_supervisor.mailbox import Mailbox
from gpuward_supervisor.outbox import RETRY_S, Outbox
from gpuward_supervisor.processes.base import Exit, OutputLine, ProcessHost, Swept
from gpuward_supervisor.processes.signals import Signals

#: Events of sources that one turn takes; more wait for the next, so that executors are heard in between.
SOURCE_EVENTS_PER_TURN = 512


class ExecutorInlet:
    """Messages of executors."""

    def __init__(self, link: ExecutorLink, socket: zmq.Socket[bytes]) -> None:
        self._link = link
        self._socket = socket

    @property
    def pollable(self) -> zmq.Socket[bytes]:
        """The link's socket."""
        return self._socket

    def take(self, now_s: float) -> Sequence[events.SupervisorEvent]:
        """Events of the messages that are ready, at most 256."""
        return self._link.receive()

    def next_deadline(self) -> float | None:
        """None: messages come when they come."""
        return None


class SourceInlet:
    """Events that sources post from their own threads."""

    def __init__(self, mailbox: Mailbox[events.SupervisorEvent]) -> None:
        self._mailbox = mailbox

    @property
    def pollable(self) -> int:
        """The mailbox's descriptor."""
        return self._mailbox.fileno()

    def take(self, now_s: float) -> Sequence[events.SupervisorEvent]:
        """What was posted, oldest first, at most ``SOURCE_EVENTS_PER_TURN`` events."""
        return self._mailbox.take(SOURCE_EVENTS_PER_TURN)

    def next_deadline(self) -> float | None:
        """None: the mailbox wakes by itself."""
        return None


class ProcessInlet:
    """Ends of processes, and what they print."""

    def __init__(
        self,
        host: ProcessHost,
        on_output: Callable[[OutputLine], None],
        on_swept: Callable[[ExecutorName, Incarnation], None],
    ) -> None:
        """Wire it up.

        Args:
            host: starts and watches the processes.
            on_output: told each line that a process prints.
            on_swept: told when nothing of an incarnation is left.
        """
        self._host = host
        self._on_output = on_output
        self._on_swept = on_swept

    @property
    def pollable(self) -> int:
        """The host's descriptor."""
        return self._host.fileno()

    def take(self, now_s: float) -> Sequence[events.SupervisorEvent]:
        """Ends and burials; output goes to ``on_output`` instead."""
        happened: list[events.SupervisorEvent] = []
        for event in self._host.collect(now_s):
            match event:
                case OutputLine():
                    self._on_output(event)
                case Exit():
                    happened.append(
                        events.ExecutorExited(
                            executor=event.executor,
                            incarnation=event.incarnation,
                            exit_code=event.exit_code,
                            signal=event.signal,
                        )
                    )
                case Swept():
                    self._on_swept(event.executor, event.incarnation)
                    happened.append(
                        events.ExecutorSwept(
                            executor=event.executor,
                            incarnation=event.incarnation,
                            leftovers=event.leftovers,
                        )
                    )
                case _:
                    assert_never(event)
        return happened

    def next_deadline(self) -> float | None:
        """When the host has to look by itself."""
        return self._host.next_deadline()


class SignalInlet:
    """SIGTERM and SIGINT ask for a stop, at the second one without waiting; SIGCHLD has the dead buried."""

    def __init__(self, signals: Signals, on_child: Callable[[float], object]) -> None:
        """Wire it up.

        Args:
            signals: the signals of this process.
            on_child: told the time when a child, own or adopted, has ended.
        """
        self._signals = signals
        self._on_child = on_child
        self._asked = False
        self._log = structlog.get_logger("gpuward")

    @property
    def pollable(self) -> int:
        """The descriptor that signals turn readable."""
        return self._signals.fileno()

    def take(self, now_s: float) -> Sequence[events.SupervisorEvent]:
        """Requests to stop; other signals are noted at most."""
        happened: list[events.SupervisorEvent] = []
        for number in self._signals.take():
            name = signal.Signals(number).name
            if number in (signal.SIGTERM, signal.SIGINT):
                self._log.info("node.signal", signal=name, repeated=self._asked)
                kind = events.StopNow if self._asked else events.StopRequested
                happened.append(kind(reason=name))
                self._asked = True
            elif number == signal.SIGCHLD:
                self._on_child(now_s)
            else:
                self._log.info("node.signal_ignored", signal=name, pid=os.getpid())
        return happened

    def next_deadline(self) -> float | None:
        """None: signals wake by themselves."""
        return None


class JournalInlet:
    """Tries a failed journal again from time to time."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._retry_at_s = 0.0

    @property
    def pollable(self) -> None:
        """None: there is only the deadline."""
        return None

    def take(self, now_s: float) -> Sequence[events.SupervisorEvent]:
        """Try the journal again; says when it works."""
        self._retry_at_s = now_s + RETRY_S
        return self._outbox.retry()

    def next_deadline(self) -> float | None:
        """When to try next while the journal fails."""
        return self._retry_at_s if self._outbox.degraded else None
