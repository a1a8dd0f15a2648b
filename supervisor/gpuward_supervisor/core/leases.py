"""Leases of persisted jobs: kept alive from the offer until the report is handed to the connection.

All leases of a source have one interval, so the order in which they were last renewed is the order in which
they fall due: renewing moves a lease to the end, and the clock looks at the first one only.
"""

from __future__ import annotations

from gpuward_ipc.types import Fence, JobId
from gpuward_supervisor.core.commands import ReportProgress
from gpuward_supervisor.core.state import Commands, Lease, Source

#: What a renewal says when there is nothing to say.
RENEWAL_MESSAGE = "processing"
#: At most one progress message a job in this time.
PROGRESS_MIN_S = 1.0


def hold(source: Source, job_id: JobId, fence: Fence, due_s: float) -> None:
    """Begin the lease of a job, or continue it under a newer fence.

    Args:
        source: where the job came from.
        job_id: the job.
        fence: the fence it was dispatched with.
        due_s: when to renew it first; one interval from now.
    """
    lease = source.leases.get(job_id)
    if lease is None:
        source.leases[job_id] = Lease(fence, due_s)
        return
    if lease.fence != fence:  # a newer dispatch is a fresh lease; the same one keeps its due time
        lease.fence = fence
        lease.due_s = due_s
        source.leases.move_to_end(job_id)


def drop(source: Source, job_id: JobId) -> None:
    """End the lease of a job, if there is one."""
    source.leases.pop(job_id, None)


def renew_due(source: Source, now_s: float, interval_s: float, out: Commands) -> None:
    """Renew what has fallen due; nothing while the source is not registered, everything after."""
    connection = source.connection
    if connection is None or not source.registered:
        return
    leases = source.leases
    while leases:
        job_id, lease = next(iter(leases.items()))
        if lease.due_s > now_s:
            return
        lease.due_s = now_s + interval_s
        leases.move_to_end(job_id)
        out.append(
            ReportProgress(
                source=source.name,
                connection=connection,
                job_id=job_id,
                fence=lease.fence,
                status_message=RENEWAL_MESSAGE,
            )
        )


def pass_on_progress(
    source: Source,
    job_id: JobId,
    progress: float,
    status_message: str,
    now_s: float,
    interval_s: float,
    out: Commands,
) -> None:
    """Report the progress of a leased job, which renews its lease.

    Dropped without a trace: progress that says nothing, that comes within ``PROGRESS_MIN_S`` of the last one,
    or while the source is not registered.

    Args:
        source: where the job came from.
        job_id: the job.
        progress: 0..1, negative when unknown.
        status_message: a word for people, empty for none.
        now_s: the time.
        interval_s: renewal interval.
        out: collects the command.
    """
    lease = source.leases.get(job_id)
    connection = source.connection
    if lease is None or connection is None or not source.registered:
        return
    if now_s - lease.progress_at_s < PROGRESS_MIN_S or (progress < 0 and not status_message):
        return
    lease.progress_at_s = now_s
    lease.due_s = now_s + interval_s
    source.leases.move_to_end(job_id)
    out.append(
        ReportProgress(
            source=source.name,
            connection=connection,
            job_id=job_id,
            fence=lease.fence,
            progress=None if progress < 0 else min(progress, 1.0),
            status_message=status_message or None,
        )
    )


def next_due(source: Source) -> float | None:
    """When the next lease falls due; None while the source could not be told anyway."""
    if not source.leases or not source.registered:
        return None
    return next(iter(source.leases.values())).due_s
