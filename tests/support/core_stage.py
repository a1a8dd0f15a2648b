"""A stage for tests of the supervisor's core: one state, a clock that the test moves, events and commands.

Every event is followed by a check of all invariants. Notes are kept apart, so that a test compares what is
done and not what is said about it.
"""

from __future__ import annotations

from typing import Any

from gpuward_ipc.types import ExecutorName, Fault, Fence, Incarnation, JobId, RunId, SourceName
from gpuward_supervisor.core import invariants
from gpuward_supervisor.core.commands import (
    Command,
    Note,
    ReportError,
    ReportResult,
    SendAck,
    SendAssign,
    SendCancel,
)
from gpuward_supervisor.core.decide import decide, initial_state, next_deadline
from gpuward_supervisor.core.events import (
    BodyId,
    ConnectionId,
    EngineDied,
    ExecutorBeat,
    ExecutorConnected,
    ExecutorExited,
    ExecutorReady,
    ExecutorSwept,
    JobOffered,
    JobRevoked,
    Mode,
    ReportsDelivered,
    ReportSeq,
    RunCancelled,
    RunFailed,
    RunSucceeded,
    SourceConnected,
    SourceDisconnected,
    SupervisorEvent,
    Ticked,
)
from gpuward_supervisor.core.policy import ExecutorPlan, Policy
from gpuward_supervisor.core.state import Executor, Source

SOURCE = SourceName("q")
START_S = 1000.0

PERSISTED = Mode.PERSISTED
TRANSIENT = Mode.TRANSIENT


class Stage:
    """A supervisor's core with one source ``q`` and executors ``gpu0``, ``gpu1`` …"""

    def __init__(self, slots: tuple[int, ...] = (2, 2), *, warm: bool = True, **policy: Any) -> None:
        """Set the stage.

        Args:
            slots: slots of each planned executor.
            warm: connect and register the source, and bring all executors to be ready.
            policy: fields of the policy that differ from their defaults.
        """
        policy.setdefault("backoff_jitter", 0.0)
        policy.setdefault("job_notes", False)
        policy.setdefault("sources", (SOURCE,))
        self.names = [ExecutorName(f"gpu{i}") for i in range(len(slots))]
        plans = tuple(ExecutorPlan(name, n) for name, n in zip(self.names, slots, strict=True))
        self.policy = Policy(executors=plans, **policy)
        self.state = initial_state(self.policy, 1)
        self.now_s = START_S
        self.notes: list[Note] = []
        self.beats = 0
        if warm:
            self.tick()
            for name, count in zip(self.names, slots, strict=True):
                self.bring_up(name, count)
            self.connect()
            self.notes.clear()

    # ------------------------------------------------------------ feeding

    def feed(self, event: SupervisorEvent, *, after_s: float = 0.0) -> list[Command]:
        """Let time pass, feed an event, and return the commands without the notes."""
        self.now_s += after_s
        commands = decide(self.state, event, self.now_s)
        invariants.check(self.state)
        self.notes += [c for c in commands if isinstance(c, Note)]
        return [c for c in commands if not isinstance(c, Note)]

    def tick(self, after_s: float = 0.0) -> list[Command]:
        """Let time pass at once, however many deadlines lie between, and tick."""
        return self.feed(Ticked(), after_s=after_s)

    def pass_time(self, span_s: float, *, beating: bool = True) -> list[Command]:
        """Let time pass from deadline to deadline, as the loop does, while the connected executors beat."""
        until_s = self.now_s + span_s
        commands: list[Command] = []
        while (deadline_s := next_deadline(self.state)) is not None and deadline_s <= until_s:
            self.now_s = max(deadline_s, self.now_s)
            commands += self.tick()
            after_s = next_deadline(self.state)
            assert after_s is None or after_s > self.now_s, "a deadline was left unmet"
            if beating:
                for executor in self.state.executors.values():
                    commands += self.beat(executor.name, *executor.runs)
        self.now_s = until_s
        return commands

    def said(self, event: str) -> list[dict[str, Any]]:
        """Facts of all notes of an event so far."""
        return [note.facts for note in self.notes if note.event == event]

    # ------------------------------------------------------------ looking

    def executor(self, name: str = "gpu0") -> Executor:
        """The executor of a name."""
        return self.state.executors[ExecutorName(name)]

    @property
    def source(self) -> Source:
        """The source ``q``."""
        return self.state.sources[SOURCE]

    # ------------------------------------------------------------ the source

    def connect(self, connection: int = 1) -> list[Command]:
        """The source is connected."""
        return self.feed(SourceConnected(source=SOURCE, connection=ConnectionId(connection)))

    def disconnect(self, connection: int = 1) -> list[Command]:
        """The source has lost its connection."""
        return self.feed(
            SourceDisconnected(source=SOURCE, connection=ConnectionId(connection), reason="reset")
        )

    def offer(
        self, job: str, body: int | None, *, fence: int = 1, mode: Mode = TRANSIENT, **more: Any
    ) -> list[Command]:
        """A job is dispatched to this node."""
        return self.feed(
            JobOffered(
                source=SOURCE,
                connection=ConnectionId(more.pop("connection", self.source.connection or 0)),
                job_id=JobId(job),
                fence=Fence(fence),
                mode=mode,
                task="chat",
                config_id="c",
                body=None if body is None else BodyId(body),
                **more,
            )
        )

    def revoke(self, job: str) -> list[Command]:
        """A job is taken back."""
        return self.feed(JobRevoked(source=SOURCE, job_id=JobId(job), reason="cancelled"))

    def deliver(self, seq: int, connection: int = 1) -> list[Command]:
        """The peer has read all reports up to a number."""
        return self.feed(
            ReportsDelivered(source=SOURCE, connection=ConnectionId(connection), seq=ReportSeq(seq))
        )

    # ------------------------------------------------------------ the executors

    def bring_up(self, name: str, slots: int = 2) -> list[Command]:
        """The current incarnation of an executor says hello and becomes ready."""
        at = self.at(name)
        return self.feed(ExecutorConnected(**at)) + self.feed(ExecutorReady(**at, slots=slots))

    def at(self, name: str, incarnation: int | None = None) -> dict[str, Any]:
        """Executor and incarnation as fields of an event; the current one if none is given."""
        executor = self.executor(name)
        number = executor.incarnation if incarnation is None else Incarnation(incarnation)
        return {"executor": executor.name, "incarnation": number}

    def beat(self, name: str, *runs: int, slots: int = 2, seq: int | None = None) -> list[Command]:
        """A heartbeat of the current incarnation that lists some runs."""
        self.beats += 1
        return self.feed(
            ExecutorBeat(
                **self.at(name),
                seq=self.beats if seq is None else seq,
                runs=tuple(RunId(run) for run in runs),
                slots=slots,
            )
        )

    def succeed(
        self, name: str, run: int, body: int, *, size: int = 10, incarnation: int | None = None
    ) -> list[Command]:
        """A run ends well."""
        at = self.at(name, incarnation)
        return self.feed(RunSucceeded(**at, run=RunId(run), body=BodyId(body), body_bytes=size))

    def fail(self, name: str, run: int, error: str = "boom", fault: Fault = Fault.ENGINE) -> list[Command]:
        """A run fails on a living executor."""
        return self.feed(RunFailed(**self.at(name), run=RunId(run), error=error, fault=fault))

    def cancelled(self, name: str, run: int) -> list[Command]:
        """A run was given up."""
        return self.feed(RunCancelled(**self.at(name), run=RunId(run)))

    def engine_dies(self, name: str, *, permanent: bool = False) -> list[Command]:
        """The engine of an executor is gone."""
        return self.feed(EngineDied(**self.at(name), detail="engine gone", permanent=permanent))

    def exit(self, name: str, *, signal: int | None = 11, code: int | None = None) -> list[Command]:
        """The process of an executor is gone."""
        return self.feed(ExecutorExited(**self.at(name), exit_code=code, signal=signal))

    def sweep(self, name: str) -> list[Command]:
        """What an executor left behind is gone."""
        return self.feed(ExecutorSwept(**self.at(name)))


# ---------------------------------------------------------------- expected commands


def assign(
    name: str,
    run: int,
    job: str,
    body: int,
    *,
    attempt: int = 1,
    incarnation: int = 1,
    transient: bool = True,
) -> SendAssign:
    """The assignment of a job that ``Stage.offer`` offered."""
    return SendAssign(
        executor=ExecutorName(name),
        incarnation=Incarnation(incarnation),
        run=RunId(run),
        job_id=JobId(job),
        task="chat",
        config_id="c",
        attempt=attempt,
        body=BodyId(body),
        transient=transient,
    )


def ack(name: str, run: int, *, incarnation: int = 1) -> SendAck:
    """The acknowledgement of an outcome."""
    return SendAck(executor=ExecutorName(name), incarnation=Incarnation(incarnation), runs=(RunId(run),))


def cancel(name: str, run: int, reason: str, *, incarnation: int = 1) -> SendCancel:
    """The order to give up a run."""
    return SendCancel(
        executor=ExecutorName(name), incarnation=Incarnation(incarnation), run=RunId(run), reason=reason
    )


def result(seq: int, job: str, body: int, *, fence: int = 1, connection: int = 1) -> ReportResult:
    """An inline result."""
    return ReportResult(
        source=SOURCE,
        connection=ConnectionId(connection),
        seq=ReportSeq(seq),
        job_id=JobId(job),
        fence=Fence(fence),
        body=BodyId(body),
    )


def error(seq: int, job: str, text: str, *, fence: int = 1, connection: int = 1) -> ReportError:
    """A reported error."""
    return ReportError(
        source=SOURCE,
        connection=ConnectionId(connection),
        seq=ReportSeq(seq),
        job_id=JobId(job),
        fence=Fence(fence),
        error=text,
    )
