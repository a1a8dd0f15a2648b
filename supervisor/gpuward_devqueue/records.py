"""What the queue holds (jobs, workers) and what it decides (commands), as plain records.

Ids, states, the two mutable records of the queue's state, and the commands it hands to its shell. No I/O,
no clock, no rules: those are in ``queue_state``.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NewType

import msgspec

JobId = NewType("JobId", str)
#: One WebSocket; never reused. Workers are told apart by it, not by the name they claim.
ConnectionId = NewType("ConnectionId", int)

#: Written where no connection is meant (a worker that is gone, a request by a caller).
NO_CONNECTION = ConnectionId(0)


class Mode(StrEnum):
    """Who is interested in the answer."""

    #: A caller is blocked on it; no lease, gone after the caller's timeout.
    TRANSIENT = "transient"
    #: Stored; leased to a worker and dispatched again when the lease runs out.
    PERSISTED = "persisted"


class Status(StrEnum):
    """Where a job is."""

    #: Waits for a worker with a free slot; nobody may be running it (or its lease has lapsed).
    PENDING = "pending"
    #: Offered to a worker under ``Job.fence``; no answer with that fence has come.
    RUNNING = "running"
    #: Ended with a result. Final.
    COMPLETED = "completed"
    #: Ended with a worker's error. Final.
    FAILED = "failed"
    #: Ended by a caller's wish. Final.
    REVOKED = "revoked"
    #: Transient only: ended because nobody answered in time. Final.
    TIMED_OUT = "timed_out"


TERMINAL = frozenset({Status.COMPLETED, Status.FAILED, Status.REVOKED, Status.TIMED_OUT})


class Job(msgspec.Struct, kw_only=True):
    """One job and everything known about it; owned by ``QueueState``."""

    id: JobId
    mode: Mode
    #: JSON text, exactly as submitted.
    payload: bytes
    #: Which workers may have it; None = any. After the first offer: ``offered_config_id``.
    config_id: str | None
    #: Position in the line, by submission; a lapsed job keeps it and so goes first.
    seq: int
    #: Wall clock, seconds since 1970.
    created_at_s: float
    status: Status = Status.PENDING
    #: Fence of the latest offer, 0 before the first. The only fence that counts.
    fence: int = 0
    #: The connection that last took the job or renewed it.
    connection: ConnectionId = NO_CONNECTION
    #: The name that worker had claimed.
    worker_id: str = ""
    #: ``config_id`` of the worker it was last offered to.
    offered_config_id: str | None = None
    #: Queue clock; when a running persisted job lapses.
    lease_until_s: float = math.inf
    #: Queue clock; when a transient caller gives up.
    give_up_at_s: float = math.inf
    #: JSON text of the result.
    result: bytes | None = None
    error: str | None = None
    progress: float | None = None
    status_message: str | None = None

    @property
    def terminal(self) -> bool:
        """Whether the job has ended for good."""
        return self.status in TERMINAL


class Worker(msgspec.Struct, kw_only=True):
    """A registered connection; replaced whole by every ``register``."""

    connection: ConnectionId
    worker_id: str
    config_id: str
    #: Slots it offers; 0 after ``drain``, which only a new ``register`` undoes.
    capacity: int
    paused: bool = False
    draining: bool = False
    #: Jobs that occupy its slots.
    active: set[JobId] = msgspec.field(default_factory=set)
    #: How many offers this record has had; breaks ties so that equal workers take turns.
    offers: int = 0

    @property
    def free(self) -> int:
        """Slots it can take now."""
        return 0 if self.paused else max(0, self.capacity - len(self.active))


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job as callers see it; ``created_at`` is seconds since 1970."""

    id: JobId
    config_id: str | None
    status: Status
    payload: msgspec.Raw
    result: msgspec.Raw | None
    error: str | None
    fence_token: int
    created_at: float
    mode: Mode
    worker_id: str
    progress: float | None
    status_message: str | None


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A registered worker as callers see it."""

    worker_id: str
    config_id: str
    capacity: int
    active: int
    paused: bool
    draining: bool


def view_of_job(job: Job) -> JobView:
    """Return what callers may see of a job."""
    return JobView(
        id=job.id,
        config_id=job.offered_config_id or job.config_id,
        status=job.status,
        payload=msgspec.Raw(job.payload),
        result=None if job.result is None else msgspec.Raw(job.result),
        error=job.error,
        fence_token=job.fence,
        created_at=job.created_at_s,
        mode=job.mode,
        worker_id=job.worker_id,
        progress=job.progress,
        status_message=job.status_message,
    )


def view_of_worker(worker: Worker) -> WorkerView:
    """Return what callers may see of a worker."""
    return WorkerView(
        worker_id=worker.worker_id,
        config_id=worker.config_id,
        capacity=worker.capacity,
        active=len(worker.active),
        paused=worker.paused,
        draining=worker.draining,
    )


class Offer(msgspec.Struct, frozen=True):
    """Send the job to that connection under that fence."""

    connection: ConnectionId
    job_id: JobId
    fence: int
    config_id: str
    #: Whether it repeats an offer this connection already has (scripted misbehaviour).
    again: bool = False


class Revoke(msgspec.Struct, frozen=True):
    """Tell that connection to drop the job."""

    connection: ConnectionId
    job_id: JobId
    reason: str


class Acknowledge(msgspec.Struct, frozen=True):
    """Tell that connection that its uploaded result has been taken."""

    connection: ConnectionId
    job_id: JobId


class Complain(msgspec.Struct, frozen=True):
    """Tell that connection what was wrong with its frame."""

    connection: ConnectionId
    message: str


class Settle(msgspec.Struct, frozen=True):
    """Wake whoever waits for the job: it has ended."""

    job_id: JobId


class Forget(msgspec.Struct, frozen=True):
    """Drop what the shell still keeps for the job: it is no longer held."""

    job_id: JobId


Command = Offer | Revoke | Acknowledge | Complain | Settle | Forget
