"""What the supervisor's core remembers between two events: plain mutable records, owned by one thread.

Only the modules beside this one change them, and only while an event is being decided.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from random import Random
from typing import TypeAlias

from gpuward_ipc.types import ExecutorName, Fence, Incarnation, JobId, RunId, SourceName
from gpuward_supervisor.core.commands import SupervisorCommand
from gpuward_supervisor.core.events import BodyId, ConnectionId, ReportSeq
from gpuward_supervisor.core.policy import Policy

#: A job is the same job for as long as its source uses the same id for it, whatever its fence.
JobKey: TypeAlias = tuple[SourceName, JobId]
#: Where a decision collects its commands, in order.
Commands: TypeAlias = list[SupervisorCommand]


class NodePhase(StrEnum):
    """Where the node is between its start and its end."""

    #: Jobs are accepted; executors are kept alive.
    RUNNING = "running"
    #: No new jobs; the accepted ones may finish until the grace is over; no executor is respawned.
    DRAINING = "draining"
    #: No job is left; executors are stopping, owed reports are flushed, sources are closed.
    STOPPING = "stopping"
    #: ``Exit`` has been said.
    ENDED = "ended"


class ExecutorPhase(StrEnum):
    """Where an executor's current incarnation is."""

    #: Never started yet.
    PLANNED = "planned"
    #: Started; has not said hello.
    SPAWNING = "spawning"
    #: Said hello; its engine is loading.
    STARTING = "starting"
    #: Its engine answers; takes runs.
    READY = "ready"
    #: Lost: its engine is gone or it was told to die; the process has not been seen to end.
    DYING = "dying"
    #: Told to leave in an orderly stop.
    STOPPING = "stopping"
    #: The process is gone; what it left behind is being removed.
    SWEEPING = "sweeping"
    #: Nothing of it is left; the next incarnation waits for its time.
    BACKOFF = "backoff"
    #: Nothing of it is left and none will follow: the node stops.
    STOPPED = "stopped"
    #: Nothing of it is left and none will follow: given up.
    FAILED = "failed"


#: It can still become ready, or is.
HOPEFUL_PHASES = frozenset({ExecutorPhase.SPAWNING, ExecutorPhase.STARTING, ExecutorPhase.READY})
#: No process is there and none will be started.
GONE_PHASES = frozenset({ExecutorPhase.STOPPED, ExecutorPhase.FAILED})


class JobPhase(StrEnum):
    """Where an accepted job is."""

    #: Its payload is being downloaded.
    FETCHING = "fetching"
    #: Waits for a slot.
    QUEUED = "queued"
    #: Holds a slot of one executor.
    RUNNING = "running"
    #: Not ours any more: a report is owed, or it was revoked. Such a record may linger in a queue.
    DONE = "done"


class OwedPhase(StrEnum):
    """Where an owed report is."""

    #: Its body is on its way to the upload URL.
    UPLOADING = "uploading"
    #: Waits for a registered connection.
    UNSENT = "unsent"
    #: Handed to the connection under a number; not known to be delivered.
    SENT = "sent"
    #: Delivered, superseded, revoked or given up.
    DONE = "done"


@dataclass(slots=True, eq=False)
class Run:
    """One try of one job on one executor; it holds a slot until its end is known."""

    run: RunId
    #: None when nobody wants the outcome any more.
    job: Job | None
    started_at_s: float
    #: When ``Assign`` was sent last; after that, when ``Cancel`` was sent last.
    sent_at_s: float


@dataclass(slots=True, eq=False)
class Job:
    """A job between its offer and its owed report."""

    key: JobKey
    fence: Fence
    persisted: bool
    task: str
    config_id: str
    #: Payload; None only while it is being fetched.
    body: BodyId | None
    payload_url: str
    upload_url: str
    offered_at_s: float
    phase: JobPhase
    #: Registration of the source that the job counts against; -1 for none.
    epoch: int
    #: Runs begun so far.
    tries: int = 0
    #: Executor of the last try; a retry avoids it.
    executor: ExecutorName | None = None
    run: Run | None = None
    #: First ``Assign``.
    started_at_s: float | None = None


@dataclass(slots=True, eq=False)
class Owed:
    """A terminal report that its source has not provably received."""

    key: JobKey
    fence: Fence
    persisted: bool
    #: Result; None for an error.
    body: BodyId | None
    body_bytes: int
    error: str
    upload_url: str
    owed_at_s: float
    phase: OwedPhase = OwedPhase.UNSENT
    #: The body lies at the upload URL: report a reference.
    uploaded: bool = False
    #: Number of the last sending; 0 before the first.
    seq: ReportSeq = ReportSeq(0)  # noqa: RUF009  a plain int


@dataclass(slots=True, eq=False)
class Lease:
    """A persisted job's hold on the queue, renewed until its report is handed to the connection."""

    fence: Fence
    due_s: float
    #: Last progress of the job that was passed on.
    progress_at_s: float = -inf


@dataclass(slots=True, eq=False)
class Executor:
    """One planned executor and its current incarnation."""

    name: ExecutorName
    planned_slots: int
    phase: ExecutorPhase = ExecutorPhase.PLANNED
    incarnation: Incarnation = Incarnation(0)  # noqa: RUF009  a plain int
    pid: int = 0
    #: This incarnation has said hello: messages reach it.
    connected: bool = False
    #: Jobs it runs at once; 0 unless ready.
    slots: int = 0
    runs: dict[RunId, Run] = field(default_factory=dict)
    #: Next thing that the clock does to it; infinite for none.
    due_s: float = inf
    #: An engine that is not ready then is killed.
    start_by_s: float = inf
    last_beat_s: float = -inf
    beat_seq: int = 0
    #: Phase of the engine in its own words.
    engine_phase: str = ""
    engine_version: str = ""
    ready_at_s: float | None = None
    #: Newest run given to it; among equally free ones the longest unused is chosen.
    last_run: int = 0
    #: Why it is dying, for people.
    detail: str = ""
    #: Trying again cannot help.
    permanent: bool = False
    #: Kills sent to this incarnation.
    kills: int = 0
    #: Deaths in a row without a long time of being ready.
    failures: int = 0
    #: Times of deaths within the restart period.
    deaths: deque[float] = field(default_factory=deque)
    spawn_at_s: float = inf
    restarts: int = 0


@dataclass(slots=True, eq=False)
class Source:
    """One job source, its connection, and what the other side believes about us."""

    name: SourceName
    connection: ConnectionId | None = None
    #: ``Register`` was sent on this connection.
    registered: bool = False
    #: Slots offered by the last ``Register``.
    capacity: int = 0
    #: Unfinished jobs that came since the last ``Register``.
    open_jobs: int = 0
    #: Counts ``Register`` and connects; a job of an older one is not in ``open_jobs``.
    epoch: int = 0
    paused: bool = False
    drain_announced: bool = False
    #: At the last look, exactly as many jobs could come as slots were free, and nothing was left to say.
    at_ease: bool = False
    #: Since when more jobs could come than slots are free.
    dip_since_s: float | None = None
    #: Earliest time of the next re-registration.
    reregister_at_s: float = -inf
    #: Earliest time of the next gathering.
    gather_at_s: float = -inf
    #: While set, the queue is paused so that few jobs run when the capacity is registered anew.
    gather_until_s: float | None = None
    #: Gatherings in vain since a registration that was exact.
    gathers: int = 0
    #: Slots that were alive at the last look; a change starts the gatherings afresh.
    slots_seen: int = 0
    #: When the capacity has to be looked at again; infinite for no need.
    capacity_due_s: float = inf
    leases: OrderedDict[JobId, Lease] = field(default_factory=OrderedDict)
    #: Reports that wait for a registered connection, oldest first.
    unsent: dict[JobId, Owed] = field(default_factory=dict)
    #: The transient ones among them, oldest first.
    unsent_transient: OrderedDict[JobId, Owed] = field(default_factory=OrderedDict)
    #: Reports handed to this connection, in order; superseded ones linger until their number has passed.
    sent: deque[tuple[ReportSeq, Owed]] = field(default_factory=deque)
    #: Reports owed to this source, in whatever phase.
    owed: int = 0
    #: ``CloseSource`` was sent; it counts as closed at ``close_by_s`` at the latest.
    closing: bool = False
    close_by_s: float = inf
    closed: bool = False


@dataclass(slots=True, eq=False)
class Counters:
    """What has happened since the start, for the status."""

    offered: int = 0
    duplicates: int = 0
    superseded: int = 0
    refused: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    revoked: int = 0
    reported: int = 0
    delivered: int = 0
    dropped: int = 0
    deaths: int = 0
    #: Messages about runs that are not (or no longer) known, or of dead incarnations.
    stale_messages: int = 0


@dataclass(slots=True, eq=False)
class Stop:
    """An ordered end: why, and by when."""

    reason: str
    code: int
    #: Jobs that are not done then are failed.
    grace_until_s: float
    #: Text for jobs that cannot be finished.
    job_error: str
    #: Until then jobs that crossed the announcement on the wire may come, and are taken if a slot is free.
    crossing_until_s: float = -inf
    #: Do not wait for engines.
    hurried: bool = False
    #: Sources are closed then, delivered or not.
    close_at_s: float = inf


@dataclass(slots=True, eq=False)
class State:
    """Everything that ``decide`` knows."""

    policy: Policy
    rng: Random
    executors: dict[ExecutorName, Executor]
    sources: dict[SourceName, Source]
    phase: NodePhase = NodePhase.RUNNING
    stop: Stop | None = None
    #: Accepted and unfinished jobs.
    jobs: dict[JobKey, Job] = field(default_factory=dict)
    #: Reports not known to be delivered.
    owed: dict[JobKey, Owed] = field(default_factory=dict)
    #: First tries, oldest first; records of jobs that are done linger until they reach the front.
    queue: deque[Job] = field(default_factory=deque)
    #: Further tries; they go before all first tries.
    retries: deque[Job] = field(default_factory=deque)
    #: Jobs in either queue.
    queued: int = 0
    #: Executors that take runs, in the order of the plan.
    ready: list[Executor] = field(default_factory=list)
    #: Their slots.
    alive_slots: int = 0
    #: Runs that hold a slot though nobody wants their outcome.
    orphans: int = 0
    #: Owed reports whose body is being uploaded.
    uploading: int = 0
    #: Some executor has been ready since the start.
    was_ready: bool = False
    journal_ok: bool = True
    last_run: int = 0
    last_seq: int = 0
    #: When all connected executors hear from us next; infinite while there are none.
    pulse_at_s: float = inf
    counters: Counters = field(default_factory=Counters)

    @property
    def planned_slots(self) -> int:
        """Slots of all planned executors, dead or alive."""
        return sum(executor.planned_slots for executor in self.executors.values())

    def load(self) -> int:
        """Slots that are taken or spoken for: unfinished jobs, and runs whose end is awaited."""
        return len(self.jobs) + self.orphans

    def offerable_slots(self) -> int:
        """Slots that the ready executors have, up to the node's own limit."""
        limit = self.policy.capacity_max
        return self.alive_slots if limit is None else min(self.alive_slots, limit)
