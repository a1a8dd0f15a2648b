"""The rules of the queue: fences, leases, slots, who gets which job. Pure: no I/O, and ``now_s`` is given.

Every method changes the state and returns the commands that make the change visible, in order. The clock
(``now_s``) must never go backwards. Where the protocol leaves something open, the rules are these:

* One counter gives out all fences; each offer of a job takes the next number. A message about a job counts
  only if it carries the fence of the job's latest offer, whatever connection it comes from: a worker that was
  cut off may come back on a new socket and deliver.
* A lapsed job waits under its old fence until it is offered again. An answer that arrives in between is
  taken, since nobody else has the job; a renewal is not, since the lease is gone.
* Slots are counted per registration. A new ``register`` starts with none in use, as the protocol's own test
  server does. A lapse and a revocation free the slot at once: no message tells when the worker is done.
* A transient job keeps its slot after its caller has given up: the worker is still at it.

This file is long because it is one decision table: its events share every line of the state.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

import msgspec

from gpuward_devqueue.ledger import Ledger, LinkNote, Note
from gpuward_devqueue.line import Line
from gpuward_devqueue.records import (
    NO_CONNECTION,
    Acknowledge,
    Command,
    Complain,
    ConnectionId,
    Forget,
    Job,
    JobId,
    Mode,
    Offer,
    Revoke,
    Settle,
    Status,
    Worker,
)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long things last and how much is kept; see ``DevQueueConfig`` for the meaning of each."""

    lease_s: float = 300.0
    timeout_s: float = 120.0
    accept_fence_zero: bool = False
    jobs_kept_max: int = 100_000
    kept_max_bytes: int = 512 * 1024 * 1024


class QueueState:
    """All jobs and all registered workers.

    Args:
        limits: durations and bounds.
        ledger: where every change is written down.
    """

    def __init__(self, limits: Limits, ledger: Ledger) -> None:
        self._limits = limits
        self._ledger = ledger
        self._fence = 0
        self._seq = 0
        self._jobs: dict[JobId, Job] = {}
        self._workers: dict[ConnectionId, Worker] = {}
        self._line = Line(self._waits)
        self._pending = 0
        #: Running persisted jobs by end of lease, and open transient jobs by the end of their caller's
        #: patience. Both durations are constant, so the order of insertion is the order of the deadlines.
        self._leases: OrderedDict[JobId, None] = OrderedDict()
        self._callers: OrderedDict[JobId, None] = OrderedDict()
        #: Ended jobs still held, in the order they ended, and their weight.
        self._ended: deque[JobId] = deque()
        self._ended_bytes = 0

    # ------------------------------------------------------------------ questions

    def job(self, job_id: JobId) -> Job | None:
        """Return the job, or None when it is not held."""
        return self._jobs.get(job_id)

    def jobs(self) -> Iterator[Job]:
        """Iterate over all jobs held, oldest first."""
        return iter(self._jobs.values())

    def worker(self, connection: ConnectionId) -> Worker | None:
        """Return the registration of a connection, or None."""
        return self._workers.get(connection)

    def workers(self) -> list[Worker]:
        """Return all registered workers, oldest connection first."""
        return list(self._workers.values())

    @property
    def pending(self) -> int:
        """How many jobs wait for a worker."""
        return self._pending

    @property
    def still_open(self) -> int:
        """How many jobs have not ended."""
        return len(self._jobs) - len(self._ended)

    def has_room(self, config_id: str | None) -> bool:
        """Whether a job for this config (None = any) would be offered at once."""
        return self._choose(config_id) is not None

    # ------------------------------------------------------------------ callers

    def submit(
        self,
        job_id: JobId,
        mode: Mode,
        payload: bytes,
        *,
        config_id: str | None,
        created_at_s: float,
        now_s: float,
    ) -> list[Command]:
        """Put a new job at the end of the line and offer what can be offered.

        Args:
            job_id: must not be held already.
            mode: transient jobs end by themselves after ``timeout_s``.
            payload: JSON text.
            config_id: which workers may have it; None = any.
            created_at_s: wall clock, for callers' eyes only.
            now_s: the queue's clock.
        """
        assert job_id not in self._jobs, f"job id {job_id!r} is used twice"
        self._seq += 1
        job = Job(
            id=job_id,
            mode=mode,
            payload=payload,
            config_id=config_id,
            seq=self._seq,
            created_at_s=created_at_s,
        )
        self._jobs[job_id] = job
        if mode is Mode.TRANSIENT:
            job.give_up_at_s = now_s + self._limits.timeout_s
            self._callers[job_id] = None
        self._note(job, Note.SUBMITTED, now_s, detail=mode.value)
        self._enqueue(job)
        return self._dispatch(now_s)

    def revoke(self, job_id: JobId, reason: str, now_s: float) -> list[Command]:
        """End a job by a caller's wish; nothing happens to one that has ended."""
        job = self._jobs.get(job_id)
        if job is None or job.terminal:
            return []
        holder = self._reachable_holder(job)
        told: list[Command] = [] if holder is None else [Revoke(holder, job_id, reason)]
        self._note(job, Note.REVOKED, now_s, connection=job.connection, detail=reason)
        ended = self._end(job, Status.REVOKED)
        self._free_everywhere(job_id)
        return told + ended + self._dispatch(now_s)

    def offer_again(self, job_id: JobId, *, raise_fence: bool, now_s: float) -> list[Command]:
        """Offer a running job a second time to the worker that has it (scripted misbehaviour)."""
        job = self._jobs.get(job_id)
        if job is None or job.status is not Status.RUNNING or job.connection not in self._workers:
            return []
        if raise_fence:
            self._fence += 1
            job.fence = self._fence
            self._renew(job, now_s)
        return [self._offered(job, self._workers[job.connection], now_s, again=True)]

    # ------------------------------------------------------------------ workers: presence

    def register(
        self, connection: ConnectionId, worker_id: str, config_id: str, capacity: int, now_s: float
    ) -> list[Command]:
        """Replace the connection's registration (unpaused, no slot in use) and offer the backlog."""
        self._workers[connection] = Worker(
            connection=connection, worker_id=worker_id, config_id=config_id, capacity=capacity
        )
        self._ledger.note_link(
            now_s,
            connection,
            LinkNote.REGISTERED,
            worker_id=worker_id,
            capacity=capacity,
            detail=config_id,
        )
        return self._dispatch(now_s)

    def pause(self, connection: ConnectionId, now_s: float) -> list[Command]:
        """Offer nothing to this worker until ``resume``."""
        return self._set_paused(connection, LinkNote.PAUSED, now_s)

    def resume(self, connection: ConnectionId, now_s: float) -> list[Command]:
        """Offer again; a drained worker has no slots left and gets nothing."""
        return self._set_paused(connection, LinkNote.RESUMED, now_s)

    def drain(self, connection: ConnectionId, now_s: float) -> list[Command]:
        """Take the worker's slots away for as long as this registration lasts."""
        return self._set_paused(connection, LinkNote.DRAINED, now_s)

    def disconnected(self, connection: ConnectionId, now_s: float) -> None:
        """Forget a registration; its persisted jobs keep their leases, its transient ones their callers."""
        worker = self._workers.pop(connection, None)
        if worker is None:
            return
        for job_id in sorted(worker.active):
            job = self._jobs.get(job_id)
            if job is not None and job.status is Status.RUNNING and job.connection == connection:
                self._note(job, Note.ORPHANED, now_s, connection=connection)

    # ------------------------------------------------------------------ workers: answers

    def complete(
        self, connection: ConnectionId, job_id: JobId, fence: int, result: bytes, now_s: float
    ) -> list[Command]:
        """Take a result (JSON text), if its fence is the one that counts."""
        job = self._answerable(connection, job_id, fence, "job_result", now_s)
        if job is None:
            return self._dispatch(now_s)
        job.result = result
        return self._answered(job, Note.COMPLETED, connection, now_s, f"{len(result)} bytes")

    def complete_by_reference(
        self, connection: ConnectionId, job_id: JobId, fence: int, uploaded: bytes | None, now_s: float
    ) -> list[Command]:
        """Take an uploaded result; without an upload the job stays as it is and the worker is told."""
        job = self._answerable(connection, job_id, fence, "job_result_ref", now_s)
        if job is None:
            return self._dispatch(now_s)
        if uploaded is None:
            self._note(job, Note.UPLOAD_MISSING, now_s, connection=connection)
            message = (
                f"job_result_ref for job {job_id} with fence {fence}: no uploaded JSON result; "
                "PUT it to result_upload_url first, or send job_result"
            )
            return [Complain(connection, message)]
        job.result = uploaded
        detail = f"{len(uploaded)} bytes by reference"
        answered = self._answered(job, Note.COMPLETED, connection, now_s, detail)
        return [Acknowledge(connection, job_id), *answered]

    def fail(
        self, connection: ConnectionId, job_id: JobId, fence: int, error: str, now_s: float
    ) -> list[Command]:
        """Take an error as the job's answer, if its fence is the one that counts."""
        job = self._answerable(connection, job_id, fence, "job_error", now_s)
        if job is None:
            return self._dispatch(now_s)
        job.error = error
        return self._answered(job, Note.FAILED, connection, now_s, error[:200])

    def renew(
        self,
        connection: ConnectionId,
        job_id: JobId,
        fence: int,
        *,
        progress: float | None,
        status_message: str | None,
        now_s: float,
    ) -> None:
        """Note progress and start the lease anew, if the fence counts and the lease has not lapsed."""
        job = self._jobs.get(job_id)
        if job is None:
            self._unknown(connection, job_id, "job_progress", now_s)
            return
        if fence != job.fence or job.status is not Status.RUNNING:
            self._refused(connection, job, fence, "job_progress", now_s)
            return
        self._note(job, Note.PROGRESSED, now_s, connection=connection, detail=status_message or "")
        if connection in self._workers:
            job.connection = connection
        job.progress = progress if progress is not None else job.progress
        job.status_message = status_message if status_message is not None else job.status_message
        self._renew(job, now_s)

    # ------------------------------------------------------------------ time

    def sweep(self, now_s: float) -> list[Command]:
        """Let leases lapse and callers give up, and offer what that puts back in line."""
        commands: list[Command] = []
        while self._leases:
            job = self._jobs[next(iter(self._leases))]
            if job.lease_until_s > now_s:
                break
            self._note(job, Note.LAPSED, now_s, connection=job.connection)
            self._free_everywhere(job.id)
            self._enqueue(job)
        while self._callers:
            job = self._jobs[next(iter(self._callers))]
            if job.give_up_at_s > now_s:
                break
            if job.status is Status.RUNNING:
                self._ledger.note_lost()
            self._note(job, Note.TIMED_OUT, now_s, connection=job.connection)
            commands += self._end(job, Status.TIMED_OUT)
        return commands + self._dispatch(now_s)

    # ------------------------------------------------------------------ inside: offering

    def _enqueue(self, job: Job) -> None:
        self._leases.pop(job.id, None)
        job.status = Status.PENDING
        self._pending += 1
        self._line.add(job.config_id, job.seq, job.id)

    def _waits(self, job_id: JobId) -> bool:
        job = self._jobs.get(job_id)
        return job is not None and job.status is Status.PENDING

    def _dispatch(self, now_s: float) -> list[Command]:
        commands: list[Command] = []
        while self._pending:
            job_id = self._line.take(self.has_room)
            if job_id is None:
                break
            job = self._jobs[job_id]
            worker = self._choose(job.config_id)
            assert worker is not None, "the line gave out a job that nobody can take"
            self._pending -= 1
            self._fence += 1
            job.fence = self._fence
            job.status = Status.RUNNING
            job.connection = worker.connection
            job.worker_id = worker.worker_id
            job.offered_config_id = worker.config_id
            worker.active.add(job_id)
            worker.offers += 1
            self._renew(job, now_s)
            commands.append(self._offered(job, worker, now_s, again=False))
        return commands

    def _choose(self, config_id: str | None) -> Worker | None:
        """Return the fitting worker with most free slots; among equals, the one offered the fewest jobs."""
        chosen: Worker | None = None
        for worker in self._workers.values():
            if config_id is not None and worker.config_id != config_id:
                continue
            free = worker.free
            if free > 0 and (chosen is None or (free, -worker.offers) > (chosen.free, -chosen.offers)):
                chosen = worker
        return chosen

    def _offered(self, job: Job, worker: Worker, now_s: float, *, again: bool) -> Offer:
        detail = "again" if again else ""
        self._note(job, Note.OFFERED, now_s, connection=worker.connection, detail=detail)
        return Offer(worker.connection, job.id, job.fence, worker.config_id, again)

    def _renew(self, job: Job, now_s: float) -> None:
        if job.mode is Mode.PERSISTED:
            job.lease_until_s = now_s + self._limits.lease_s
            self._leases[job.id] = None
            self._leases.move_to_end(job.id)

    # ------------------------------------------------------------------ inside: ending

    def _answerable(
        self, connection: ConnectionId, job_id: JobId, fence: int, frame: str, now_s: float
    ) -> Job | None:
        """Return the job this answer settles; otherwise note why not, and free the slot it may have held."""
        job = self._jobs.get(job_id)
        if job is None:
            self._unknown(connection, job_id, frame, now_s)
            self._free(connection, job_id)
            return None
        if fence == 0 and job.mode is Mode.TRANSIENT and self._limits.accept_fence_zero:
            fence = job.fence
        if job.terminal or fence != job.fence or job.fence == 0:
            self._refused(connection, job, fence, frame, now_s)
            # A worker that answered an older offer of its own still has the newer one in its slot.
            if job.terminal or job.connection != connection:
                self._free(connection, job_id)
            return None
        return job

    def _answered(
        self, job: Job, note: Note, connection: ConnectionId, now_s: float, detail: str
    ) -> list[Command]:
        self._note(job, note, now_s, connection=connection, detail=detail)
        ended = self._end(job, Status.COMPLETED if note is Note.COMPLETED else Status.FAILED)
        self._free_everywhere(job.id)
        return ended + self._dispatch(now_s)

    def _end(self, job: Job, status: Status) -> list[Command]:
        if job.status is Status.PENDING:
            self._pending -= 1
        job.status = status
        self._leases.pop(job.id, None)
        self._callers.pop(job.id, None)
        self._ended.append(job.id)
        self._ended_bytes += _weight(job)
        commands: list[Command] = [Settle(job.id)]
        while (
            len(self._ended) > self._limits.jobs_kept_max or self._ended_bytes > self._limits.kept_max_bytes
        ):
            # The newest stays whatever it weighs: its caller has yet to read it.
            if self._ended[0] == job.id:
                break
            evicted = self._jobs.pop(self._ended.popleft())
            self._ended_bytes -= _weight(evicted)
            commands.append(Forget(evicted.id))
        return commands

    def _free_everywhere(self, job_id: JobId) -> None:
        """Free the slot the job was offered into, whichever connection has renewed or answered it since."""
        for worker in self._workers.values():
            worker.active.discard(job_id)

    def _free(self, connection: ConnectionId, job_id: JobId) -> None:
        worker = self._workers.get(connection)
        if worker is not None:
            worker.active.discard(job_id)

    # ------------------------------------------------------------------ inside: workers and the ledger

    def _set_paused(self, connection: ConnectionId, note: LinkNote, now_s: float) -> list[Command]:
        worker = self._workers.get(connection)
        if worker is None:
            detail = f"{note.value} before register"
            self._ledger.note_link(now_s, connection, LinkNote.VIOLATED, detail=detail)
            return [Complain(connection, "register first: this connection has no worker yet")]
        worker.paused = note is not LinkNote.RESUMED
        if note is LinkNote.DRAINED:
            worker.draining = True
            worker.capacity = 0
        self._ledger.note_link(now_s, connection, note, worker_id=worker.worker_id, capacity=worker.capacity)
        return self._dispatch(now_s)

    def _reachable_holder(self, job: Job) -> ConnectionId | None:
        """Return the connection to revoke on: the holder's own, or the newest one of the same name."""
        if job.status is not Status.RUNNING:
            return None
        if job.connection in self._workers:
            return job.connection
        for worker in reversed(self._workers.values()):
            if worker.worker_id == job.worker_id:
                return worker.connection
        return None

    def _note(
        self,
        job: Job,
        note: Note,
        now_s: float,
        *,
        connection: ConnectionId = NO_CONNECTION,
        fence: int | None = None,
        detail: str = "",
    ) -> None:
        worker = self._workers.get(connection)
        self._ledger.note(
            now_s,
            job.id,
            note,
            fence=job.fence if fence is None else fence,
            connection=connection,
            worker_id=job.worker_id if worker is None else worker.worker_id,
            detail=detail,
        )

    def _unknown(self, connection: ConnectionId, job_id: JobId, frame: str, now_s: float) -> None:
        worker = self._workers.get(connection)
        self._ledger.note_link(
            now_s,
            connection,
            LinkNote.UNKNOWN_JOB,
            worker_id="" if worker is None else worker.worker_id,
            detail=f"{frame} for job {job_id[:80]}",
        )

    def _refused(self, connection: ConnectionId, job: Job, fence: int, frame: str, now_s: float) -> None:
        if fence != job.fence or fence == 0:
            note = Note.STALE if 0 < fence < job.fence else Note.WRONG_FENCE
        elif job.status in (Status.COMPLETED, Status.FAILED) and frame != "job_progress":
            note = Note.DUPLICATE
        else:
            note = Note.LATE
        detail = f"{frame} while {job.status.value} with fence {job.fence}"
        self._note(job, note, now_s, connection=connection, fence=fence, detail=detail)


def _weight(job: Job) -> int:
    return len(job.payload) + (0 if job.result is None else len(job.result))
