"""The queue of the simulation: jobs, fences, leases, one connection that comes and goes, and a ledger.

Frames on a connection arrive in order or, when it is cut, not at all. The queue enforces capacity and
fences; what the worker reports is compared with what was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from gpuward_ipc.types import Fence, JobId, SourceName
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events as e
from simulation.clock import Clock

SOURCE = SourceName("casola")
LEASE_S = 300.0
#: Time on the wire, one way.
WIRE_S = 0.002


class PromiseBroken(AssertionError):
    """The node did what it must never do."""


@dataclass
class QueueJob:
    """A job as the queue knows it."""

    id: JobId
    persisted: bool
    large: bool
    by_url: bool
    offered_at_s: float
    fence: Fence = field(default=Fence(0))
    #: ``pending``, ``running``, ``done``, ``revoked`` or ``timed out``.
    status: str = "pending"
    lease_until_s: float = 0.0
    #: Text of the accepted answer.
    answer: str = ""
    #: Fences under which a terminal report came, with the connection.
    reports: list[tuple[Fence, e.ConnectionId]] = field(default_factory=list)


class Queue:
    """The other side of the one source."""

    def __init__(
        self, clock: Clock, random: Random, post: Callable[[e.SupervisorEvent, str | None], None]
    ) -> None:
        """Wire it up.

        Args:
            clock: virtual time.
            random: this queue's own dice.
            post: takes an event to the supervisor, with the payload that belongs to it.
        """
        self._clock = clock
        self._random = random
        self._post = post
        self.jobs: dict[JobId, QueueJob] = {}
        self._open: dict[JobId, QueueJob] = {}
        self._fence = 0
        self._number = 0
        self.connection: e.ConnectionId | None = None
        self._connections = 0
        self._capacity = 0
        self._active: set[JobId] = set()
        self._paused = True
        self._draining = False
        self._wire_at_s = 0.0
        self.uploads: dict[tuple[JobId, Fence], str] = {}
        #: A node that is down cannot be connected to.
        self.node_up = False

    # ------------------------------------------------------------ callers

    def ask(self, persisted: bool, large: bool, by_url: bool) -> JobId:
        """A new job."""
        self._number += 1
        job = QueueJob(JobId(f"j{self._number}"), persisted, large, by_url, self._clock.now_s)
        self.jobs[job.id] = self._open[job.id] = job
        if not persisted:
            self._clock.after(120.0, lambda: self._give_up(job))
        self._dispatch()
        return job.id

    def revoke_one(self) -> None:
        """Take a job back that is being run."""
        running = [job for job in self._open.values() if job.status == "running"]
        if running and self.connection is not None:
            job = self._random.choice(running)
            self._end(job, "revoked")
            event = e.JobRevoked(source=SOURCE, job_id=job.id, reason="caller left")
            self._to_worker(lambda: self._post(event, None))

    def redispatch_one(self) -> None:
        """Offer a running job again, under a higher fence, as after a lapse that only the queue saw."""
        running = [job for job in self._open.values() if job.status == "running" and job.persisted]
        if running and self.connection is not None:
            self._offer(self._random.choice(running))

    def unanswered(self) -> list[JobId]:
        """Jobs without an end."""
        return list(self._open)

    # ------------------------------------------------------------ connection

    def connect(self) -> None:
        """Open a connection if there is none and the node is up."""
        if self.connection is not None or not self.node_up:
            return
        self._connections += 1
        self.connection = e.ConnectionId(self._connections)
        self._paused, self._draining, self._capacity = True, False, 0
        self._active.clear()
        self._wire_at_s = 0.0
        self._post(e.SourceConnected(source=SOURCE, connection=self.connection), None)

    def cut(self) -> None:
        """The connection breaks; what is on the wire is lost both ways."""
        if self.connection is None:
            return
        gone, self.connection = self.connection, None
        self._active.clear()
        if self.node_up:
            self._post(e.SourceDisconnected(source=SOURCE, connection=gone, reason="cut"), None)
        self._clock.after(self._random.uniform(0.5, 5.0), self.connect)

    def receive(self, command: do.SupervisorCommand, body: str | None) -> None:
        """A frame of the worker, sent now on the connection that it names."""
        connection = command.connection  # type: ignore[union-attr]
        if connection != self.connection:
            return
        self._to_queue(lambda: self._read(command, body), connection)

    def _read(self, command: do.SupervisorCommand, body: str | None) -> None:
        match command:
            case do.Register(capacity=capacity):
                if capacity < 1:
                    raise PromiseBroken(f"registered with capacity {capacity}")
                self._capacity, self._paused, self._draining = capacity, False, False
                self._active.clear()
                self._dispatch()
            case do.Pause():
                self._paused = True
            case do.Resume():
                self._paused = self._draining
                self._dispatch()
            case do.AnnounceDrain():
                self._draining = self._paused = True
            case do.ReportProgress(job_id=job_id, fence=fence):
                job = self.jobs[job_id]
                if job.fence == fence and job.status == "running":
                    job.lease_until_s = self._clock.now_s + LEASE_S
            case do.ReportResult():
                self._answered(command.job_id, command.fence, command.seq, body or "")
            case do.ReportResultRef():
                text = self.uploads.get((command.job_id, command.fence))
                if text is None:
                    raise PromiseBroken(f"{command.job_id}: a reference to a result that was never uploaded")
                self._answered(command.job_id, command.fence, command.seq, text)
            case do.ReportError():
                self._answered(command.job_id, command.fence, command.seq, f"error: {command.error}")

    def _answered(self, job_id: JobId, fence: Fence, seq: e.ReportSeq, text: str) -> None:
        assert self.connection is not None
        job = self.jobs[job_id]
        if (fence, self.connection) in job.reports:
            raise PromiseBroken(f"{job_id}: two terminal reports under fence {fence} on one connection")
        job.reports.append((fence, self.connection))
        if text != f"result of {job_id}" and not text.startswith("error: "):
            raise PromiseBroken(f"{job_id} was answered with {text!r}")
        self._active.discard(job_id)
        if job.status == "running" and job.fence == fence:
            job.answer = text
            self._end(job, "done")
        connection = self.connection
        # The pong behind the report: proof that it was read.
        delivered = e.ReportsDelivered(source=SOURCE, connection=connection, seq=seq)
        self._to_worker(lambda: self._post(delivered, None))
        self._dispatch()

    # ------------------------------------------------------------ dispatch

    def _dispatch(self) -> None:
        if self.connection is None or self._paused:
            return
        for job in list(self._open.values()):
            if len(self._active) >= self._capacity:
                return
            if job.status == "pending":
                self._offer(job)

    def _offer(self, job: QueueJob) -> None:
        assert self.connection is not None
        self._fence += 1
        job.fence, job.status = Fence(self._fence), "running"
        job.lease_until_s = self._clock.now_s + LEASE_S
        self._active.add(job.id)
        self._clock.at(job.lease_until_s + 0.001, lambda: self._lapse(job))
        offer = e.JobOffered(
            source=SOURCE,
            connection=self.connection,
            job_id=job.id,
            fence=job.fence,
            mode=e.Mode.PERSISTED if job.persisted else e.Mode.TRANSIENT,
            task="t",
            config_id="c",
            body=None,
            body_bytes=300_000 if job.large else 100,
            payload_url=f"http://q/{job.id}" if job.by_url else "",
            result_upload_url=f"http://q/{job.id}/{job.fence}" if job.persisted else "",
        )
        payload = None if job.by_url else f"payload of {job.id}"
        self._to_worker(lambda: self._post(offer, payload))

    def _lapse(self, job: QueueJob) -> None:
        if job.status != "running" or not job.persisted:
            return
        if self._clock.now_s < job.lease_until_s:
            self._clock.at(job.lease_until_s + 0.001, lambda: self._lapse(job))
            return
        job.status = "pending"
        self._active.discard(job.id)
        self._dispatch()

    def _give_up(self, job: QueueJob) -> None:
        if job.id in self._open:
            self._end(job, "timed out")

    def _end(self, job: QueueJob, status: str) -> None:
        job.status = status
        self._active.discard(job.id)
        self._open.pop(job.id, None)

    # ------------------------------------------------------------ the wire: in order, lost when cut

    def _to_worker(self, act: Callable[[], None]) -> None:
        self._on_wire(act, self.connection)

    def _to_queue(self, act: Callable[[], None], connection: e.ConnectionId) -> None:
        self._on_wire(act, connection)

    def _on_wire(self, act: Callable[[], None], connection: e.ConnectionId | None) -> None:
        self._wire_at_s = max(self._wire_at_s, self._clock.now_s + WIRE_S)

        def arrive() -> None:
            if self.connection == connection:
                act()

        self._clock.at(self._wire_at_s, arrive)
