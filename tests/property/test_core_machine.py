"""A rule machine against the supervisor's core: any order of events that the outside can produce.

The machine plays the queue, the executors, the journal and the clock, fairly or not, and keeps a ledger of
its own. It judges by that ledger; ``invariants.check`` looks at the state itself after every step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gpuward_ipc.types import ExecutorName, Fault, Fence, Incarnation, JobId, RunId, SourceName
from gpuward_supervisor.core import invariants
from gpuward_supervisor.core.commands import (
    AbandonTransfer,
    AnnounceDrain,
    CloseSource,
    Exit,
    FetchPayload,
    ForgetBody,
    Kill,
    Pause,
    Register,
    Remember,
    ReportError,
    ReportProgress,
    ReportResult,
    ReportResultRef,
    Resume,
    SendAck,
    SendAssign,
    SendCancel,
    SendPulse,
    SendStop,
    SendWelcome,
    Spawn,
    SupervisorCommand,
    Unremember,
    UploadResult,
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
    ExecutorSpawned,
    ExecutorSpawnFailed,
    ExecutorSwept,
    JobOffered,
    JobRevoked,
    Mode,
    PayloadFetched,
    PayloadFetchFailed,
    ReportsDelivered,
    ReportSeq,
    ResultUploaded,
    ResultUploadFailed,
    RunCancelled,
    RunFailed,
    RunProgressed,
    RunSucceeded,
    SourceClosed,
    SourceConnected,
    SourceDisconnected,
    StopNow,
    StopRequested,
    SupervisorEvent,
    Ticked,
)
from gpuward_supervisor.core.policy import ExecutorPlan, Policy

Q = SourceName("q")
NAMES = [ExecutorName("gpu0"), ExecutorName("gpu1"), ExecutorName("gpu2")]
SLOTS = 2
JOB_IDS = [JobId(name) for name in "abcdef"]
THRESHOLD = 100
INLINE_MAX = 1000

names = st.sampled_from(NAMES)
job_ids = st.sampled_from(JOB_IDS)
bodies_bytes = st.sampled_from([1, THRESHOLD, THRESHOLD + 1, INLINE_MAX, INLINE_MAX + 1])
picks = st.integers(0, 10_000)
#: Trouble comes rarely, or nothing would ever be under way.
rarely = st.sampled_from([False, False, False, False, True])


@dataclass
class Process:
    """An incarnation as the machine sees it."""

    incarnation: int
    connected: bool = False
    ready: bool = False
    beats: int = 0
    killed: bool = False
    exited: bool = False
    swept: bool = False
    #: Assigned, no outcome told yet.
    runs: dict[RunId, JobId] = field(default_factory=dict)


@dataclass
class Dispatch:
    """What the queue knows of its newest dispatch of a job."""

    fence: int
    persisted: bool
    revoked: bool = False
    delivered: int = 0


class CoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.connection: int | None = None
        self.connections = 0
        self.registered = False
        self.drained = False
        self.paused = False
        self.closing = False
        self.exit: Exit | None = None
        self.processes: dict[ExecutorName, list[Process]] = {name: [] for name in NAMES}
        self.bodies: set[BodyId] = set()
        self.bodies_ever = 0
        self.journal: dict[JobId, Remember] = {}
        self.dispatches: dict[JobId, Dispatch] = {}
        self.fences = 0
        #: Reports on this connection that the peer has not read: number → (job, fence).
        self.unread: dict[int, tuple[JobId, int]] = {}
        self.last_seq = 0
        self.transfers: dict[tuple[JobId, int], str] = {}
        #: Wanted run of a job: (executor, incarnation, run).
        self.running: dict[JobId, tuple[ExecutorName, int, RunId]] = {}
        self.runs_ever: set[RunId] = set()
        self.dropped: set[JobId] = set()

    @initialize(
        attempts_max=st.integers(0, 2),
        intensity=st.sampled_from([1, 3, 100]),
        capacity_max=st.sampled_from([None, None, 1, 4]),
        warm=st.sampled_from([True, True, True, False]),
        may_stop=rarely,
    )
    def start(
        self, attempts_max: int, intensity: int, capacity_max: int | None, warm: bool, may_stop: bool
    ) -> None:
        self.may_stop = may_stop
        self.policy = Policy(
            executors=tuple(ExecutorPlan(name, SLOTS) for name in NAMES),
            sources=(Q,),
            attempts_max=attempts_max,
            restart_intensity=intensity,
            upload_threshold_bytes=THRESHOLD,
            inline_result_max_bytes=INLINE_MAX,
            capacity_max=capacity_max,
            job_notes=False,
            outbox_max=3,
        )
        self.state = initial_state(self.policy, 7)
        self.feed(Ticked())
        assert all(len(self.processes[name]) == 1 for name in NAMES)
        if warm:
            self.connect()
            for name in NAMES:
                self.process_starts(name, True)
                self.engine_starts(name, SLOTS, False)

    # ------------------------------------------------------------ the ledger

    def feed(self, event: SupervisorEvent) -> list[SupervisorCommand]:
        commands = decide(self.state, event, self.now_s)
        for command in commands:
            self.enter(command)
        invariants.check(self.state)
        return commands

    def new_body(self) -> BodyId:
        self.bodies_ever += 1
        body = BodyId(self.bodies_ever)
        self.bodies.add(body)
        return body

    def process(self, name: ExecutorName, incarnation: int) -> Process:
        """The process a message goes to: only the newest one, only while it can hear."""
        process = self.processes[name][-1]
        assert process.incarnation == incarnation
        assert process.connected
        assert not process.exited
        return process

    def enter(self, command: SupervisorCommand) -> None:
        match command:
            case Spawn():
                line = self.processes[command.executor]
                assert command.incarnation == len(line) + 1
                assert not line or line[-1].swept
                assert not self.closing
                line.append(Process(command.incarnation))
            case Kill():
                assert self.processes[command.executor][-1].incarnation == command.incarnation
                assert not self.processes[command.executor][-1].exited
                self.processes[command.executor][-1].killed = True
            case SendAssign():
                self.enter_assign(command)
            case SendWelcome() | SendPulse() | SendStop() | SendAck():
                self.process(command.executor, command.incarnation)
            case SendCancel():
                self.process(command.executor, command.incarnation)
                place = (command.executor, command.incarnation, command.run)
                lost = [job_id for job_id, where in self.running.items() if where == place]
                # A run is cancelled after its job was taken back, or when the node waits for it no longer.
                assert not lost or self.state.stop is not None
                for job_id in lost:
                    del self.running[job_id]
            case Register() | Pause() | Resume() | AnnounceDrain():
                self.enter_capacity(command)
            case ReportResult() | ReportResultRef() | ReportError():
                self.enter_report(command)
            case ReportProgress():
                assert command.connection == self.connection
                assert self.registered
                dispatch = self.dispatches[command.job_id]
                assert dispatch.persisted
                assert not dispatch.revoked
                assert dispatch.fence == command.fence
            case FetchPayload():
                assert self.transfers.setdefault((command.job_id, command.fence), "fetch") == "fetch"
            case UploadResult():
                assert command.body in self.bodies
                assert (command.job_id, command.fence) not in self.transfers
                self.transfers[command.job_id, command.fence] = "upload"
            case AbandonTransfer():
                self.transfers.pop((command.job_id, command.fence), None)
            case Remember():
                assert command.body is None or command.body in self.bodies
                self.journal[command.job_id] = command
            case Unremember():
                del self.journal[command.job_id]
            case ForgetBody():
                self.bodies.remove(command.body)
            case CloseSource():
                assert not self.closing
                self.closing = True
            case Exit():
                assert self.exit is None
                self.exit = command
            case _:
                if command.event == "report.dropped":
                    self.dropped.add(JobId(str(command.facts["job_id"])))

    def enter_assign(self, command: SendAssign) -> None:
        process = self.process(command.executor, command.incarnation)
        assert process.ready
        assert command.body in self.bodies
        assert command.attempt <= self.policy.attempts_max + 1
        place = (command.executor, command.incarnation, command.run)
        if self.running.get(command.job_id) == place:
            return  # sent again
        assert command.job_id not in self.running, "a job may run in one place only"
        assert command.run not in self.runs_ever
        self.runs_ever.add(command.run)
        self.running[command.job_id] = place
        process.runs[command.run] = command.job_id
        assert len(process.runs) <= SLOTS

    def enter_capacity(self, command: Register | Pause | Resume | AnnounceDrain) -> None:
        assert command.connection == self.connection
        match command:
            case Register():
                assert not self.drained
                ready = sum(
                    line[-1].ready and not line[-1].killed for line in self.processes.values() if line
                )
                assert 0 < command.capacity <= max(1, SLOTS * ready)
                self.registered = True
                self.paused = False
            case Pause() | Resume():
                assert self.registered
                assert not self.drained
                assert self.paused is isinstance(command, Resume)
                self.paused = isinstance(command, Pause)
            case AnnounceDrain():
                assert self.registered
                assert not self.drained
                self.drained = True

    def enter_report(self, command: ReportResult | ReportResultRef | ReportError) -> None:
        assert command.connection == self.connection
        assert self.registered
        assert command.seq > self.last_seq
        self.last_seq = command.seq
        dispatch = self.dispatches[command.job_id]
        assert dispatch.fence == command.fence, "only the newest fence may be reported"
        assert not dispatch.revoked
        assert not dispatch.delivered, "a report was repeated after its delivery"
        assert (command.job_id, command.fence) not in self.unread.values(), "reported twice on one connection"
        if dispatch.persisted:
            assert self.journal[command.job_id].fence == command.fence, "sent before it was durable"
        if isinstance(command, ReportResult):
            assert command.body in self.bodies
        self.unread[command.seq] = (command.job_id, command.fence)

    # ------------------------------------------------------------ the clock

    @rule(share=st.sampled_from([0.3, 1.0, 1.0, 1.0, 1.0]))
    def time_passes(self, share: float) -> None:
        deadline_s = next_deadline(self.state)
        if deadline_s is None:
            return
        assert deadline_s > self.now_s or share, "the clock must not stand still"
        if share < 1.0:
            self.now_s += (max(deadline_s, self.now_s) - self.now_s) * share
            return
        self.now_s = max(deadline_s, self.now_s)
        self.feed(Ticked())
        after_s = next_deadline(self.state)
        assert after_s is None or after_s > self.now_s, "a deadline was left unmet"

    @rule()
    def clock_of_no_use(self) -> None:
        self.feed(Ticked())

    # ------------------------------------------------------------ the queue

    @precondition(lambda self: not self.closing)
    @rule()
    def connect(self) -> None:
        if self.connection is not None:
            return
        self.connections += 1
        self.connection = self.connections
        self.feed(SourceConnected(source=Q, connection=ConnectionId(self.connections)))

    def forget_connection(self) -> None:
        self.connection = None
        self.registered = self.drained = self.paused = False
        self.unread.clear()

    @precondition(lambda self: self.connection is not None)
    @rule(really=rarely)
    def disconnect(self, really: bool) -> None:
        if self.connection is None or not really:
            return
        gone = ConnectionId(self.connection)
        self.forget_connection()
        self.feed(SourceDisconnected(source=Q, connection=gone, reason="reset"))

    @rule()
    def stale_disconnect(self) -> None:
        if self.connection is not None and self.connection > 1:
            gone = ConnectionId(self.connection - 1)
            self.feed(SourceDisconnected(source=Q, connection=gone, reason="late"))

    @precondition(lambda self: self.registered)
    @rule(wanted=st.lists(st.tuples(job_ids, st.booleans()), min_size=1, max_size=8))
    def offer_many(self, wanted: list[tuple[JobId, bool]]) -> None:
        for job_id, persisted in wanted:
            self.offer(
                job_id, persisted, "inline", persisted, "new" if job_id not in self.running else "same"
            )

    @precondition(lambda self: self.registered)
    @rule(
        job_id=job_ids,
        persisted=st.booleans(),
        payload=st.sampled_from(["inline", "inline", "inline", "url", "refused", "nothing"]),
        upload=st.booleans(),
        newness=st.sampled_from(["new", "new", "same", "old"]),
    )
    def offer(self, job_id: JobId, persisted: bool, payload: str, upload: bool, newness: str) -> None:
        assert self.connection is not None
        known = self.dispatches.get(job_id)
        if newness == "new" or known is None:
            self.fences += 1
            fence = self.fences
        elif known.revoked or known.delivered or job_id in self.dropped:
            return  # a fence that has ended is not dispatched again
        else:
            fence = known.fence - (newness == "old")
            persisted = known.persisted
        if known is None or fence > known.fence:
            self.dispatches[job_id] = Dispatch(fence, persisted)
            self.dropped.discard(job_id)
            for seq in [s for s, (j, _) in self.unread.items() if j == job_id]:
                del self.unread[seq]
        body = self.new_body() if payload == "inline" else None
        self.feed(
            JobOffered(
                source=Q,
                connection=ConnectionId(self.connection),
                job_id=job_id,
                fence=Fence(fence),
                mode=Mode.PERSISTED if persisted else Mode.TRANSIENT,
                task="t",
                config_id="c",
                body=body,
                payload_url="http://payload" if payload in {"url", "refused"} else "",
                result_upload_url="http://upload" if upload else "",
                refusal="too large" if payload == "refused" else "",
            )
        )
        if self.dispatches[job_id].fence == fence and known is not None and known.persisted and not persisted:
            # The mode of a report that is owed already does not become weaker.
            self.dispatches[job_id].persisted = job_id in self.journal

    @rule(job_id=job_ids, really=st.booleans())
    def revoke(self, job_id: JobId, really: bool) -> None:
        if not really:
            return
        dispatch = self.dispatches.get(job_id)
        if dispatch is not None:
            dispatch.revoked = True
        self.running.pop(job_id, None)
        self.unread = {seq: what for seq, what in self.unread.items() if what[0] != job_id}
        self.feed(JobRevoked(source=Q, job_id=job_id, reason="cancelled by caller"))
        assert job_id not in self.journal

    @precondition(lambda self: self.unread)
    @rule(pick=picks)
    def deliver(self, pick: int) -> None:
        assert self.connection is not None
        numbers = sorted(self.unread)
        upto = numbers[pick % len(numbers)]
        self.deliver_upto(upto)

    def deliver_upto(self, upto: int) -> None:
        for seq in [s for s in sorted(self.unread) if s <= upto]:
            job_id, fence = self.unread.pop(seq)
            dispatch = self.dispatches[job_id]
            assert dispatch.fence == fence
            dispatch.delivered += 1
            assert dispatch.delivered == 1
        assert self.connection is not None
        self.feed(ReportsDelivered(source=Q, connection=ConnectionId(self.connection), seq=ReportSeq(upto)))

    @rule()
    def stale_delivery(self) -> None:
        self.feed(
            ReportsDelivered(
                source=Q, connection=ConnectionId(self.connections + 5), seq=ReportSeq(self.last_seq)
            )
        )

    # ------------------------------------------------------------ transfers

    @precondition(lambda self: self.transfers)
    @rule(pick=picks, well=st.booleans(), size=bodies_bytes)
    def transfer_ends(self, pick: int, well: bool, size: int) -> None:
        (job_id, fence), kind = list(self.transfers.items())[pick % len(self.transfers)]
        del self.transfers[job_id, fence]
        self.end_transfer(kind, job_id, fence, well, size)

    def end_transfer(self, kind: str, job_id: JobId, fence: int, well: bool, size: int) -> None:
        where: dict[str, Any] = {"source": Q, "job_id": job_id, "fence": Fence(fence)}
        if kind == "fetch":
            self.feed(
                PayloadFetched(**where, body=self.new_body(), body_bytes=size, task="t")
                if well
                else PayloadFetchFailed(**where, error="404")
            )
        else:
            self.feed(ResultUploaded(**where) if well else ResultUploadFailed(**where, error="403"))

    @rule(
        job_id=job_ids, fence=st.integers(1, 5), well=st.booleans(), kind=st.sampled_from(["fetch", "upload"])
    )
    def stale_transfer(self, job_id: JobId, fence: int, well: bool, kind: str) -> None:
        if (job_id, fence) not in self.transfers:
            self.end_transfer(kind, job_id, fence, well, 1)

    # ------------------------------------------------------------ the executors

    @rule(name=names, well=st.sampled_from([True, True, True, True, False]))
    def process_starts(self, name: ExecutorName, well: bool) -> None:
        process = self.processes[name][-1]
        if process.connected or process.exited:
            return
        at: dict[str, Any] = {"executor": name, "incarnation": Incarnation(process.incarnation)}
        if well:
            self.feed(ExecutorSpawned(**at, pid=1000 + process.incarnation))
            process.connected = True
            self.feed(ExecutorConnected(**at))
        else:
            process.exited = process.swept = True
            self.feed(ExecutorSpawnFailed(**at, error="no such file"))

    @rule(name=names, slots=st.integers(1, SLOTS + 1), lost=st.booleans())
    def engine_starts(self, name: ExecutorName, slots: int, lost: bool) -> None:
        process = self.processes[name][-1]
        if not process.connected or process.exited:
            return
        at: dict[str, Any] = {"executor": name, "incarnation": Incarnation(process.incarnation)}
        process.ready = True
        if lost:
            process.beats += 1
            self.feed(ExecutorBeat(**at, seq=process.beats, runs=(), slots=slots))
        else:
            self.feed(ExecutorReady(**at, slots=slots))

    @rule(name=names, pick=picks, stray=st.booleans())
    def heart_beats(self, name: ExecutorName, pick: int, stray: bool) -> None:
        process = self.processes[name][-1]
        if not process.connected or process.exited:
            return
        process.beats += 1
        runs = [run for run in process.runs if (run + pick) % 3]  # some assignments were lost
        if stray:
            runs.append(RunId(10**9 + pick))
        self.feed(
            ExecutorBeat(
                executor=name,
                incarnation=Incarnation(process.incarnation),
                seq=process.beats,
                runs=tuple(runs),
                slots=SLOTS if process.ready else 0,
            )
        )

    def some_run(self, pick: int) -> tuple[ExecutorName, Process, RunId] | None:
        runs = [
            (name, line[-1], run)
            for name, line in self.processes.items()
            if line and not line[-1].exited
            for run in line[-1].runs
        ]
        return runs[pick % len(runs)] if runs else None

    @rule(
        pick=picks,
        outcome=st.sampled_from(["ok", "ok", "ok", "job", "engine", "cancelled"]),
        size=bodies_bytes,
        twice=st.booleans(),
    )
    def run_ends(self, pick: int, outcome: str, size: int, twice: bool) -> None:
        found = self.some_run(pick)
        if found is None:
            return
        name, process, run = found
        job_id = process.runs.pop(run)
        if self.running.get(job_id) == (name, process.incarnation, run):
            del self.running[job_id]
        for _ in range(2 if twice else 1):
            self.tell_outcome(name, process.incarnation, run, outcome, size)

    def tell_outcome(self, name: ExecutorName, incarnation: int, run: RunId, outcome: str, size: int) -> None:
        at: dict[str, Any] = {"executor": name, "incarnation": Incarnation(incarnation), "run": run}
        match outcome:
            case "ok":
                self.feed(RunSucceeded(**at, body=self.new_body(), body_bytes=size))
            case "job":
                self.feed(RunFailed(**at, error="bad request", fault=Fault.JOB))
            case "engine":
                self.feed(RunFailed(**at, error="internal error", fault=Fault.ENGINE))
            case _:
                self.feed(RunCancelled(**at))

    @rule(pick=picks, progress=st.sampled_from([-1.0, 0.5, 1.5]), text=st.sampled_from(["", "step"]))
    def run_gets_further(self, pick: int, progress: float, text: str) -> None:
        found = self.some_run(pick)
        if found is not None:
            name, process, run = found
            self.feed(
                RunProgressed(
                    executor=name,
                    incarnation=Incarnation(process.incarnation),
                    run=run,
                    progress=progress,
                    status_message=text,
                )
            )

    @rule(name=names, run=st.integers(1, 30), outcome=st.sampled_from(["ok", "job", "engine", "cancelled"]))
    def dead_incarnation_speaks(self, name: ExecutorName, run: int, outcome: str) -> None:
        line = self.processes[name]
        if len(line) > 1:
            self.tell_outcome(name, line[-2].incarnation, RunId(run), outcome, 5)

    @rule(name=names, permanent=rarely, really=rarely)
    def engine_dies(self, name: ExecutorName, permanent: bool, really: bool) -> None:
        process = self.processes[name][-1]
        if not process.connected or process.exited or not really:
            return
        process.ready = False
        self.feed(
            EngineDied(
                executor=name,
                incarnation=Incarnation(process.incarnation),
                detail="gone",
                permanent=permanent,
            )
        )

    @rule(name=names, signal=st.sampled_from([None, 9, 11]), sweep=st.booleans(), really=rarely)
    def process_exits(self, name: ExecutorName, signal: int | None, sweep: bool, really: bool = True) -> None:
        process = self.processes[name][-1]
        if process.exited or not (really or process.killed):
            return
        process.exited = True
        process.ready = False
        for run, job_id in process.runs.items():
            if self.running.get(job_id) == (name, process.incarnation, run):
                del self.running[job_id]
        process.runs.clear()
        code = 70 if signal is None else None
        at: dict[str, Any] = {"executor": name, "incarnation": Incarnation(process.incarnation)}
        self.feed(ExecutorExited(**at, exit_code=code, signal=signal))
        if sweep:
            self.sweep(name)

    @rule(name=names)
    def sweep(self, name: ExecutorName) -> None:
        process = self.processes[name][-1]
        if process.exited and not process.swept:
            process.swept = True
            self.feed(ExecutorSwept(executor=name, incarnation=Incarnation(process.incarnation)))

    # ------------------------------------------------------------ the end

    @precondition(lambda self: self.may_stop)
    @rule(grace_s=st.sampled_from([None, 0.0, 30.0]), really=rarely)
    def ask_to_stop(self, grace_s: float | None, really: bool) -> None:
        if really:
            self.feed(StopRequested(reason="SIGTERM", grace_s=grace_s))

    @precondition(lambda self: self.may_stop)
    @rule(really=rarely)
    def ask_to_stop_now(self, really: bool) -> None:
        if really:
            self.feed(StopNow(reason="SIGTERM again"))

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        self.settle()
        if self.state.phase.value == "running":
            assert self.open_dispatches() == []
            assert self.bodies == set()
            assert self.journal == {}
        self.feed(StopRequested(reason="end of the test"))
        self.settle()
        assert self.exit is not None, "the node did not come to its end"
        # Nobody is left without an answer: what was not delivered is in the journal, or its caller has gone.
        assert [
            j for j in self.open_dispatches() if self.dispatches[j].persisted and j not in self.journal
        ] == []

    def open_dispatches(self) -> list[JobId]:
        return [
            job_id
            for job_id, dispatch in self.dispatches.items()
            if not dispatch.revoked and not dispatch.delivered and job_id not in self.dropped
        ]

    def settle(self) -> None:
        """Be fair for a while: everybody answers, everything arrives."""
        for _ in range(400):
            if self.exit is not None:
                return
            for name in NAMES:
                self.process_starts(name, True)
                process = self.processes[name][-1]
                if process.killed:
                    self.process_exits(name, 9, True)
                else:
                    self.engine_starts(name, SLOTS, False)
                self.sweep(name)
                self.beat_fairly(name)
            if self.connection is None and not self.closing:
                self.connect()
            while self.transfers:
                self.transfer_ends(0, True, 1)
            while self.some_run(0) is not None:
                self.run_ends(0, "ok", 1, False)
            if self.unread:
                self.deliver_upto(max(self.unread))
            if self.state.phase.value == "stopping":
                for name in NAMES:
                    self.process_exits(name, None, True)
                if self.closing and not self.state.sources[Q].closed:
                    self.forget_connection()
                    self.feed(SourceClosed(source=Q))
            elif self.idle() and self.state.phase.value == "running":
                return
            self.time_passes(1.0)
        raise AssertionError(f"no rest after 400 rounds: {self.state.jobs} {self.state.owed}")

    def idle(self) -> bool:
        return not self.state.jobs and not self.state.owed and not self.open_dispatches()

    def beat_fairly(self, name: ExecutorName) -> None:
        process = self.processes[name][-1]
        if process.connected and not process.exited:
            process.beats += 1
            self.feed(
                ExecutorBeat(
                    executor=name,
                    incarnation=Incarnation(process.incarnation),
                    seq=process.beats,
                    runs=tuple(process.runs),
                    slots=SLOTS if process.ready else 0,
                )
            )


CoreMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
TestCore = pytest.mark.slow(CoreMachine.TestCase)
