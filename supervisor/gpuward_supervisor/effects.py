"""One branch per command: the only place where the core's decisions meet I/O.

Order of a turn: owed reports are made durable in one transaction, then everything else is done in the
order in which it was decided. So nothing is visible outside that a crash could take back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import assert_never

import structlog

from gpuward_ipc import messages
from gpuward_ipc.errors import BackPressure
from gpuward_ipc.types import ExecutorName, Incarnation, RunId, SourceName
from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events
from gpuward_supervisor.executor_link import ExecutorLink
from gpuward_supervisor.outbox import Outbox
from gpuward_supervisor.processes.base import Launch, ProcessHost
from gpuward_supervisor.sources.base import Source


class Effects:
    """Performs commands; owned by the loop."""

    def __init__(
        self,
        *,
        link: ExecutorLink,
        host: ProcessHost,
        launch_of: Callable[[ExecutorName, Incarnation], Launch],
        sources: Mapping[SourceName, Source],
        outbox: Outbox,
        bodies: Bodies,
        heartbeat_s: float,
    ) -> None:
        self._link = link
        self._host = host
        self._launch_of = launch_of
        self._sources = sources
        self._outbox = outbox
        self._bodies = bodies
        self._welcome = messages.Welcome(heartbeat_s=heartbeat_s)
        self._pulse_seq = 0
        # Acknowledgements wait for the next turn, which comes with the next event or pulse: beside the next
        # assignment they cost the executor no wake-up of its own, and one message a turn at most.
        self._acks: dict[tuple[ExecutorName, Incarnation], list[RunId]] = {}
        #: The ones that this turn sent.
        self._acked: dict[tuple[ExecutorName, Incarnation], list[RunId]] = {}
        # Bound here, or each line would resolve the configuration anew: a quarter of what it costs.
        self._log = structlog.get_logger("gpuward").bind()
        #: Set by ``Exit``: code and reason.
        self.exit: tuple[int, str] | None = None

    def perform(self, decided: Iterable[do.SupervisorCommand]) -> list[events.SupervisorEvent]:
        """Perform the commands of one turn; returns the events that came of it at once."""
        decided = list(decided)
        outcomes = self._outbox.write(decided)
        self._acked = self._acks
        if self._acked:
            self._acks = {}
            for (executor, incarnation), runs in self._acked.items():
                self._send(executor, incarnation, messages.Ack(tuple(runs)))
        for command in decided:
            self._perform(command, outcomes)
        return outcomes

    def _perform(self, command: do.SupervisorCommand, outcomes: list[events.SupervisorEvent]) -> None:
        # What every job brings comes first: each further branch costs a comparison.
        match command:
            case do.SendAssign():
                self._assign(command)
            case do.SendAck(executor=executor, incarnation=incarnation, runs=runs):
                self._acks.setdefault((executor, incarnation), []).extend(runs)
            case do.ForgetBody(body=body):
                self._bodies.forget(body)
            case do.Remember() | do.Unremember():
                pass  # written already, before everything else
            case do.Note(level=level, event=event, facts=facts):
                self._log.log(_LEVELS.get(level, 20), event, **facts)
            case (
                do.ReportResult()
                | do.ReportProgress()
                | do.ReportError()
                | do.ReportResultRef()
                | do.Register()
                | do.Pause()
                | do.Resume()
                | do.AnnounceDrain()
                | do.FetchPayload()
                | do.UploadResult()
                | do.AbandonTransfer()
                | do.CloseSource()
            ):
                self._sources[command.source].send(command)
            case do.SendPulse(executor=executor, incarnation=incarnation):
                self._pulse_seq += 1
                self._send(executor, incarnation, messages.Pulse(self._pulse_seq))
            case do.SendCancel(executor=executor, incarnation=incarnation, run=run, reason=reason):
                # A heartbeat may list a run whose acknowledgement had waited for this very turn, or waits for
                # the next: a cancel would only bring the outcome, body and all, a second time.
                who = (executor, incarnation)
                if run not in self._acked.get(who, ()) and run not in self._acks.get(who, ()):
                    self._send(executor, incarnation, messages.Cancel(run, reason))
            case do.SendWelcome(executor=executor, incarnation=incarnation):
                self._send(executor, incarnation, self._welcome)
            case do.SendStop(executor=executor, incarnation=incarnation, grace_s=grace_s):
                self._send(executor, incarnation, messages.Stop(grace_s))
            case do.Spawn(executor=executor, incarnation=incarnation):
                outcomes.append(self._spawn(executor, incarnation))
            case do.Kill(executor=executor, incarnation=incarnation):
                self._host.kill(executor, incarnation)
            case do.Exit(code=code, reason=reason):
                self.exit = (code, reason)
            case _:
                assert_never(command)

    def _assign(self, command: do.SendAssign) -> None:
        try:
            # False when it is not connected any more: its exit is on the way as an event, and the core
            # assigns the run anew.
            self._link.assign(command)
        except BackPressure as error:
            # Credit is far below the high-water mark, so the executor is stuck: the heartbeat deadline
            # ends it. The core repeats the assignment if the executor recovers.
            self._log.error("executor.does_not_read", executor=command.executor, error=str(error))
        except OSError as error:
            self._log.error("spool.write_failed", job_id=command.job_id, error=str(error))

    def _send(
        self, executor: ExecutorName, incarnation: Incarnation, message: messages.FromSupervisor
    ) -> None:
        try:
            self._link.send(executor, incarnation, message)
        except BackPressure as error:
            self._log.error("executor.does_not_read", executor=executor, error=str(error))

    def _spawn(self, executor: ExecutorName, incarnation: Incarnation) -> events.SupervisorEvent:
        try:
            pid = self._host.spawn(self._launch_of(executor, incarnation))
        except OSError as error:
            return events.ExecutorSpawnFailed(executor=executor, incarnation=incarnation, error=str(error))
        return events.ExecutorSpawned(executor=executor, incarnation=incarnation, pid=pid)


_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
