"""The queue's single writer: joins the pure state to connections, waits, the clock and the fault script.

Owns everything that is not HTTP. All methods must be called on the event loop's thread. This file is
long because it is the one place where all of these meet: callers, workers and script use the same few fields.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol, assert_never

import msgspec
import structlog

from gpuward_devqueue import wire
from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.errors import AlreadyTerminal, NoWorker, StillWaiting, UnknownJob
from gpuward_devqueue.ledger import Counters, Entry, Ledger, LedgerReport, LinkNote, Note
from gpuward_devqueue.misbehaviour import JUNK_BINARIES, JUNK_TEXTS, Fault, Misbehaviour, Script
from gpuward_devqueue.offering import is_json, job_frame
from gpuward_devqueue.presign import Signer, Uploads
from gpuward_devqueue.queue_state import Limits, QueueState
from gpuward_devqueue.records import (
    Acknowledge,
    Command,
    Complain,
    ConnectionId,
    Forget,
    Job,
    JobId,
    JobView,
    Mode,
    Offer,
    Revoke,
    Settle,
    Status,
    Worker,
    view_of_job,
)
from gpuward_devqueue.waiting import Waits

log = structlog.get_logger("gpuward_devqueue")

#: Longest part of a frame that is remembered for inspection, characters.
FRAME_KEPT_CHARS = 4096


class Link(Protocol):
    """A worker's connection as the broker needs it; everything sent arrives in this order."""

    #: Scheme and authority the worker reached this queue by; base of its presigned URLs.
    base_url: str

    def send(self, text: bytes) -> None:
        """Send a text message."""

    def send_binary(self, body: bytes) -> None:
        """Send a binary message."""

    def close(self, code: int, reason: str) -> None:
        """Close after everything sent before has been written."""

    def abort(self) -> None:
        """Cut the connection after everything sent before has been written; no close frame."""


class SeenFrame(msgspec.Struct, frozen=True):
    """A text message of a worker as it came."""

    at_s: float
    connection: ConnectionId
    text: str


class Broker:
    """The queue's single writer.

    Args:
        config: see ``DevQueueConfig``.
    """

    def __init__(self, config: DevQueueConfig) -> None:
        self.config = config
        self.script = Script()
        self.signer = Signer(config.url_ttl_s)
        self.uploads = Uploads()
        self._ledger = Ledger(config.jobs_kept_max)
        self._state = QueueState(
            Limits(
                lease_s=config.lease_s,
                timeout_s=config.timeout_s,
                accept_fence_zero=config.accept_fence_zero,
                jobs_kept_max=config.jobs_kept_max,
                kept_max_bytes=config.kept_max_bytes,
            ),
            self._ledger,
        )
        self._links: dict[ConnectionId, Link] = {}
        self._last_connection = 0
        self._waits = Waits()
        self._timers: set[asyncio.TimerHandle] = set()
        self._frames: deque[SeenFrame] = deque(maxlen=config.frames_kept_max)

    # ------------------------------------------------------------------ callers

    def submit(
        self,
        payload: bytes,
        mode: Mode = Mode.PERSISTED,
        *,
        config_id: str | None = None,
        job_id: str | None = None,
    ) -> JobId:
        """Take a job in and offer it, or let it wait.

        Args:
            payload: JSON text.
            mode: see ``Mode``.
            config_id: which workers may have it; None = any.
            job_id: an id not held already; made up when left out.

        Returns:
            The job's id.
        """
        made = JobId(job_id or str(uuid.uuid4()))
        commands = self._state.submit(
            made, mode, payload, config_id=config_id, created_at_s=time.time(), now_s=time.monotonic()
        )
        self._perform(commands)
        return made

    async def ask(self, payload: bytes, config_id: str | None = None) -> Job:
        """Submit a transient job and return it when it has ended.

        Raises:
            NoWorker: no fitting worker has a free slot, and the queue does not let callers wait.
        """
        if not self.config.queue_transient and not self._state.has_room(config_id):
            raise NoWorker("No worker available")
        job_id = self.submit(payload, Mode.TRANSIENT, config_id=config_id)
        # Taken before the wait: an ended job may be evicted before its caller is awake.
        job = self.job(job_id)
        if not job.terminal:
            await self._waits.until_ended([job_id])
        return job

    def revoke(self, job_id: JobId, reason: str = "revoked by caller") -> None:
        """End a job that nobody wants any more and tell its worker.

        Raises:
            UnknownJob: no such job is held.
            AlreadyTerminal: it has ended.
        """
        job = self.job(job_id)
        if job.terminal:
            raise AlreadyTerminal(job_id, job.status.value)
        self._perform(self._state.revoke(job_id, reason, time.monotonic()))

    def job(self, job_id: JobId) -> Job:
        """Return a job.

        Raises:
            UnknownJob: it is not held.
        """
        job = self._state.job(job_id)
        if job is None:
            raise UnknownJob(job_id)
        return job

    def jobs(self, status: Status | None = None, limit: int | None = None) -> list[JobView]:
        """Return the jobs held, oldest first, at most ``limit`` of them."""
        found: list[JobView] = []
        for job in self._state.jobs():
            if limit is not None and len(found) >= limit:
                break
            if status is None or job.status is status:
                found.append(view_of_job(job))
        return found

    def workers(self) -> list[Worker]:
        """Return the registered workers."""
        return self._state.workers()

    def pending(self) -> int:
        """How many jobs wait for a worker."""
        return self._state.pending

    async def wait_terminal(self, job_ids: Iterable[JobId], timeout_s: float) -> dict[JobId, JobView]:
        """Wait until all these jobs have ended and return them.

        Raises:
            StillWaiting: some had not ended in time; the text names up to five.
            UnknownJob: one of them is not held.
        """
        wanted = [self.job(job_id) for job_id in job_ids]
        try:
            async with asyncio.timeout(timeout_s):
                await self._waits.until_ended(job.id for job in wanted if not job.terminal)
        except TimeoutError:
            open_jobs = [job for job in wanted if not job.terminal]
            some = ", ".join(f"{job.id} {job.status.value} fence {job.fence}" for job in open_jobs[:5])
            raise StillWaiting(
                f"{len(open_jobs)} of {len(wanted)} jobs had not ended after {timeout_s} s: {some}"
            ) from None
        return {job.id: view_of_job(job) for job in wanted}

    async def wait_until(self, statement: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until a statement about this queue holds; it is asked again after every change.

        Raises:
            StillWaiting: it did not come to hold in time.
        """
        await self._waits.until(statement, timeout_s, what)

    # ------------------------------------------------------------------ evidence

    def report(self, jobs_max: int | None = None) -> LedgerReport:
        """Return a copy of the ledger, of all jobs or of the newest ``jobs_max``."""
        return self._ledger.report(still_open=self._state.still_open, jobs_max=jobs_max)

    def counters(self) -> Counters:
        """Return the ledger's totals."""
        return self._ledger.counters(still_open=self._state.still_open)

    def page(self, job_id: JobId) -> list[Entry]:
        """Return what happened to one job."""
        return self._ledger.page(job_id)

    def frames(self) -> list[SeenFrame]:
        """Return the latest frames of workers (``frames_kept_max`` of them)."""
        return list(self._frames)

    def note_job(self, job: Job, note: Note, fence: int, detail: str = "") -> None:
        """Write down what happened to a job's URLs."""
        self._ledger.note(time.monotonic(), job.id, note, fence=fence, worker_id=job.worker_id, detail=detail)

    def note_link(self, connection: ConnectionId, note: LinkNote, *, code: int = 0, detail: str = "") -> None:
        """Write down what happened to a connection."""
        worker = self._state.worker(connection)
        name = "" if worker is None else worker.worker_id
        self._ledger.note_link(time.monotonic(), connection, note, worker_id=name, code=code, detail=detail)
        log.info(
            "devqueue.connection",
            note=note.value,
            connection=connection,
            worker_id=name or None,
            code=code or None,
            detail=detail or None,
        )
        self._waits.changed()

    def strikes(self, fault: Fault, connection: ConnectionId) -> Misbehaviour | None:
        """Use up one occasion for a fault; return the misbehaviour, written down, if it strikes now."""
        what = self.script.take(fault)
        if what is not None:
            self.note_link(connection, LinkNote.MISBEHAVED, detail=fault.value)
        return what

    # ------------------------------------------------------------------ workers

    def next_connection(self) -> ConnectionId:
        """Return a number for a connection that is being made."""
        self._last_connection += 1
        return ConnectionId(self._last_connection)

    def connected(self, connection: ConnectionId, link: Link) -> None:
        """Know a new connection; it has no worker until it registers."""
        self._links[connection] = link
        self.note_link(connection, LinkNote.CONNECTED)

    def disconnected(self, connection: ConnectionId, code: int) -> None:
        """Forget a connection and its worker."""
        self.note_link(connection, LinkNote.CLOSED, code=code)
        self._links.pop(connection, None)
        self._state.disconnected(connection, time.monotonic())
        self._waits.changed()

    def received_text(self, connection: ConnectionId, text: str) -> None:
        """Act on a text message of a worker."""
        now_s = time.monotonic()
        if self._frames.maxlen:
            self._frames.append(SeenFrame(now_s, connection, text[:FRAME_KEPT_CHARS]))
        try:
            received = wire.decode(text)
        except wire.WireError as refusal:
            self._object(connection, str(refusal))
            return
        if received.oddity:
            self.note_link(connection, LinkNote.VIOLATED, detail=received.oddity)
        self._perform(self._decide(connection, received.frame, now_s))

    def received_binary(self, connection: ConnectionId, size_bytes: int) -> None:
        """Refuse a binary message of a worker."""
        self._object(connection, f"Expected a text message, got a binary one of {size_bytes} bytes")

    def sweep(self) -> None:
        """Let what is overdue happen; to be called a few times per second."""
        self._perform(self._state.sweep(time.monotonic()))

    async def close_all(self, code: int, *, within_s: float) -> None:
        """Call off everything that was to happen later, and close all connections.

        Args:
            code: close code the workers see.
            within_s: how long to wait until they are gone.
        """
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for link in list(self._links.values()):
            link.close(code, "the queue is stopping")
        try:
            await self._waits.until(lambda: not self._links, within_s, "workers to leave")
        except StillWaiting:
            pass  # the server cuts them off

    # ------------------------------------------------------------------ inside: frames in

    def _decide(self, connection: ConnectionId, frame: wire.WorkerFrame, now_s: float) -> list[Command]:
        state = self._state
        match frame:
            case wire.JobResult(job_id=job_id, fence_token=fence, result=result):
                return state.complete(connection, JobId(job_id), fence, bytes(result), now_s)
            case wire.JobProgress(job_id=job_id, fence_token=fence):
                progress = None if frame.progress is msgspec.UNSET else frame.progress
                message = None if frame.status_message is msgspec.UNSET else frame.status_message
                state.renew(
                    connection, JobId(job_id), fence, progress=progress, status_message=message, now_s=now_s
                )
                return []
            case wire.JobError(job_id=job_id, fence_token=fence, error=error):
                return state.fail(connection, JobId(job_id), fence, error, now_s)
            case wire.JobResultRef(job_id=job_id, fence_token=fence):
                uploaded = self.uploads.get(JobId(job_id), fence)
                if uploaded is not None and not is_json(uploaded):
                    self.uploads.drop(JobId(job_id))
                    uploaded = None
                return state.complete_by_reference(connection, JobId(job_id), fence, uploaded, now_s)
            case wire.Register(worker_id=worker_id, config_id=config_id, capacity=capacity):
                strike = self.strikes(Fault.CLOSE_AFTER_REGISTER, connection)
                if strike is not None:
                    self._links[connection].close(strike.code, "scripted: close after register")
                    return []
                log.info(
                    "devqueue.worker_registered",
                    connection=connection,
                    worker_id=worker_id,
                    config_id=config_id,
                    capacity=capacity,
                )
                return state.register(connection, worker_id, config_id, capacity, now_s)
            case wire.Drain():
                return state.drain(connection, now_s)
            case wire.Pause():
                return state.pause(connection, now_s)
            case wire.Resume():
                return state.resume(connection, now_s)
            case _:
                assert_never(frame)

    def _object(self, connection: ConnectionId, message: str) -> None:
        self.note_link(connection, LinkNote.VIOLATED, detail=message)
        self._perform([Complain(connection, message)])

    # ------------------------------------------------------------------ inside: commands out

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Offer():
                    self._offer(command)
                case Settle(job_id):
                    self.uploads.drop(job_id)
                    self._waits.ended(job_id)
                case Revoke(connection, job_id, reason):
                    self._send(connection, wire.JobRevoked(job_id, reason))
                case Acknowledge(connection, job_id):
                    self._send(connection, wire.ResultRefEcho(job_id))
                case Complain(connection, message):
                    self._send(connection, wire.ErrorFrame(message))
                case Forget(job_id):
                    self.uploads.drop(job_id)
                case _:
                    assert_never(command)
        self._waits.changed()

    def _send(self, connection: ConnectionId, frame: wire.QueueFrame) -> None:
        link = self._links.get(connection)
        if link is not None:
            link.send(wire.encode(frame))

    def _offer(self, offer: Offer) -> None:
        link = self._links.get(offer.connection)
        job = self._state.job(offer.job_id)
        if link is None or job is None:
            return
        if not offer.again and self.strikes(Fault.JUNK_FRAMES, offer.connection):
            for text in JUNK_TEXTS:
                link.send(text)
            for body in JUNK_BINARIES:
                link.send_binary(body)
        giant = None if offer.again else self.strikes(Fault.OVERSIZED_JOB, offer.connection)
        link.send(
            job_frame(
                offer,
                job,
                config=self.config,
                signer=self.signer,
                base_url=link.base_url,
                wall_s=time.time(),
                pad_bytes=giant.size_bytes if giant else 0,
            )
        )
        if not offer.again:
            self._strike_mid_job(offer.connection, job.id, link)

    def _strike_mid_job(self, connection: ConnectionId, job_id: JobId, link: Link) -> None:
        def offer_again(*, raise_fence: bool) -> None:
            self._perform(self._state.offer_again(job_id, raise_fence=raise_fence, now_s=time.monotonic()))

        def revoke() -> None:
            self._perform(self._state.revoke(job_id, "scripted: revoke mid-job", time.monotonic()))

        if strike := self.strikes(Fault.DUPLICATE_SAME_FENCE, connection):
            self._later(strike.delay_s, lambda: offer_again(raise_fence=False))
        if strike := self.strikes(Fault.DUPLICATE_HIGHER_FENCE, connection):
            self._later(strike.delay_s, lambda: offer_again(raise_fence=True))
        if strike := self.strikes(Fault.REVOKE_MID_JOB, connection):
            self._later(strike.delay_s, revoke)
        if strike := self.strikes(Fault.CLOSE_MID_JOB, connection):
            code = strike.code
            self._later(strike.delay_s, lambda: link.close(code, "scripted: close mid-job"))
        if strike := self.strikes(Fault.ABORT_MID_JOB, connection):
            self._later(strike.delay_s, link.abort)

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        if delay_s <= 0:
            act()
            return

        def now() -> None:
            self._timers.discard(timer)
            act()

        timer = asyncio.get_running_loop().call_later(delay_s, now)
        self._timers.add(timer)
