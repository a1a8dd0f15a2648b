"""Jobs as their source sees them: offered, superseded by a newer dispatch, fetched, failed, revoked.

A job is known by its source and id; its fence says which dispatch of it counts. It runs at most once at a
time: a newer dispatch of a job that is under way is adopted by the run that is there.
"""

from __future__ import annotations

from typing import TypeAlias

from gpuward_supervisor.core import dispatch, leases, reports
from gpuward_supervisor.core.commands import (
    AbandonTransfer,
    FetchPayload,
    ForgetBody,
    Note,
)
from gpuward_supervisor.core.events import (
    BodyId,
    JobOffered,
    JobRevoked,
    Mode,
    PayloadFetched,
    PayloadFetchFailed,
    RunCancelled,
    RunFailed,
    RunSucceeded,
)
from gpuward_supervisor.core.state import (
    Commands,
    ExecutorPhase,
    Job,
    JobPhase,
    NodePhase,
    Owed,
    State,
)

DRAINING_ERROR = "worker is draining; job was not started"
#: Jobs that may cross a pause on the wire, on a node of one slot too.
OVER_CAPACITY_SLACK = 16
OVER_CAPACITY_ERROR = "worker was sent far more jobs than it has slots; job was not started"
NO_PAYLOAD_ERROR = "job has neither a payload nor a payload URL"

RunOutcome: TypeAlias = RunSucceeded | RunFailed | RunCancelled


# ---------------------------------------------------------------- from the source


def offered(state: State, event: JobOffered, now_s: float, out: Commands) -> None:
    """A source dispatched a job: new, known already, or answered at once."""
    state.counters.offered += 1
    key = (event.source, event.job_id)
    job = state.jobs.get(key)
    if job is not None:
        if event.fence > job.fence:
            _adopt(state, job, event, now_s, out)
        else:
            _ignore(state, event, out)
        return
    owed = state.owed.get(key)
    if owed is not None:
        if event.fence <= owed.fence:  # it is resent whenever it may have been lost
            _ignore(state, event, out)
            return
        if owed.body is not None:
            state.counters.superseded += 1
            _forget(event.body, out)
            persisted = event.mode is Mode.PERSISTED
            reports.report_again(state, owed, event.fence, persisted, event.result_upload_url, now_s, out)
            return
        # The queue asks again for what has failed here: that error is void.
        reports.give_up(state, owed, out)
    if state.phase is not NodePhase.RUNNING and not _crossed_the_drain(state, now_s):
        _refuse(state, event, DRAINING_ERROR, now_s, out)
    elif event.refusal:
        _refuse(state, event, event.refusal, now_s, out)
    elif event.body is None and not event.payload_url:
        _refuse(state, event, NO_PAYLOAD_ERROR, now_s, out)
    elif len(state.jobs) >= open_jobs_max(state):
        _refuse(state, event, OVER_CAPACITY_ERROR, now_s, out)
    else:
        _accept(state, event, now_s, out)


def _crossed_the_drain(state: State, now_s: float) -> bool:
    """Whether an offer may have been sent before the queue read that we drain, and can be run in time."""
    stop = state.stop
    return (
        state.phase is NodePhase.DRAINING
        and stop is not None
        and now_s < stop.crossing_until_s
        and state.load() < state.alive_slots
    )


def open_jobs_max(state: State) -> int:
    """Bound of accepted and unfinished jobs: as many running as there are slots, as many waiting, and a few.

    A queue that keeps to the offered capacity never comes near it, whatever dies; one that does not must
    not fill our memory.
    """
    return 2 * state.planned_slots + OVER_CAPACITY_SLACK


def revoked(state: State, event: JobRevoked, now_s: float, out: Commands) -> None:
    """The source takes a job back: stop it, report nothing."""
    key = (event.source, event.job_id)
    job = state.jobs.get(key)
    owed: Owed | None = None
    if job is not None:
        _leave_phase(state, job, event.reason or "revoked", now_s, out)
        close(state, job, out)
        leases.drop(state.sources[event.source], event.job_id)
    else:
        owed = state.owed.get(key)
        if owed is None:
            return
        reports.give_up(state, owed, out)
    state.counters.revoked += 1
    out.append(
        Note(
            level="info",
            event="job.revoked",
            facts={
                "source": event.source,
                "job_id": event.job_id,
                "reason": event.reason,
                "executor": None if job is None else job.executor,
                "finished": owed is not None,
            },
        )
    )


def payload_fetched(state: State, event: PayloadFetched, _now_s: float, out: Commands) -> None:
    """A payload has arrived: the job may run, if it is still that dispatch that counts."""
    job = state.jobs.get((event.source, event.job_id))
    if job is None or job.phase is not JobPhase.FETCHING or job.fence != event.fence:
        _forget(event.body, out)
        return
    job.body = event.body
    job.task = event.task
    _enqueue(state, job)


def payload_fetch_failed(state: State, event: PayloadFetchFailed, now_s: float, out: Commands) -> None:
    """A payload cannot be had: the job fails with that, rather than running an empty one."""
    job = state.jobs.get((event.source, event.job_id))
    if job is None or job.phase is not JobPhase.FETCHING or job.fence != event.fence:
        return
    fail(state, job, f"payload download failed: {event.error}", now_s, out)


def fail(state: State, job: Job, error: str, now_s: float, out: Commands) -> None:
    """End a job, whatever its phase, with an error that is owed to its source."""
    state.counters.failed += 1
    _leave_phase(state, job, error, now_s, out)
    close(state, job, out)
    reports.owe_error(state, job.key, job.fence, job.persisted, error, now_s, out)
    if state.policy.job_notes:
        out.append(finished_note(job, "failed", now_s))


# ---------------------------------------------------------------- parts


def _accept(state: State, event: JobOffered, now_s: float, out: Commands) -> None:
    source = state.sources[event.source]
    persisted = event.mode is Mode.PERSISTED
    epoch = -1
    if source.registered and source.connection == event.connection:
        epoch = source.epoch
        source.open_jobs += 1
    job = Job(
        (event.source, event.job_id),
        event.fence,
        persisted,
        event.task,
        event.config_id,
        event.body,
        event.payload_url,
        event.result_upload_url,
        now_s,
        JobPhase.FETCHING,
        epoch,
    )
    state.jobs[job.key] = job
    if persisted:
        leases.hold(source, event.job_id, event.fence, now_s + state.policy.lease_renew_s)
    if event.body is None:
        out.append(_fetch(job))
    else:
        _enqueue(state, job)


def _adopt(state: State, job: Job, event: JobOffered, now_s: float, out: Commands) -> None:
    """A newer dispatch of a job under way: what is there counts for it from now on."""
    state.counters.superseded += 1
    source = state.sources[event.source]
    old_fence = job.fence
    job.fence = event.fence
    job.persisted = event.mode is Mode.PERSISTED
    job.upload_url = event.result_upload_url or job.upload_url
    job.offered_at_s = now_s
    if source.registered and source.connection == event.connection and job.epoch != source.epoch:
        job.epoch = source.epoch
        source.open_jobs += 1
    if job.persisted:
        leases.hold(source, event.job_id, event.fence, now_s + state.policy.lease_renew_s)
    else:
        leases.drop(source, event.job_id)
    out.append(
        Note(
            level="info",
            event="job.superseded",
            facts={
                "source": event.source,
                "job_id": event.job_id,
                "fence": event.fence,
                "phase": job.phase.value,
            },
        )
    )
    if job.phase is not JobPhase.FETCHING:
        _forget(event.body, out)
        return
    out.append(AbandonTransfer(source=event.source, job_id=event.job_id, fence=old_fence))
    job.task = event.task
    job.config_id = event.config_id
    job.payload_url = event.payload_url
    if event.body is not None:
        job.body = event.body
        _enqueue(state, job)
    elif event.refusal or not event.payload_url:
        job.phase = JobPhase.DONE  # its transfer has just been abandoned
        fail(state, job, event.refusal or NO_PAYLOAD_ERROR, now_s, out)
    else:
        out.append(_fetch(job))


def _ignore(state: State, event: JobOffered, out: Commands) -> None:
    state.counters.duplicates += 1
    _forget(event.body, out)
    out.append(
        Note(
            level="debug",
            event="job.duplicate",
            facts={"source": event.source, "job_id": event.job_id, "fence": event.fence},
        )
    )


def _refuse(state: State, event: JobOffered, error: str, now_s: float, out: Commands) -> None:
    state.counters.refused += 1
    _forget(event.body, out)
    persisted = event.mode is Mode.PERSISTED
    reports.owe_error(state, (event.source, event.job_id), event.fence, persisted, error, now_s, out)
    out.append(
        Note(
            level="warning",
            event="job.refused",
            facts={"source": event.source, "job_id": event.job_id, "error": error},
        )
    )


def _fetch(job: Job) -> FetchPayload:
    return FetchPayload(source=job.key[0], job_id=job.key[1], fence=job.fence, url=job.payload_url)


def _enqueue(state: State, job: Job) -> None:
    job.phase = JobPhase.QUEUED
    state.queue.append(job)
    state.queued += 1


def _leave_phase(state: State, job: Job, reason: str, now_s: float, out: Commands) -> None:
    """Take a job out of whatever it is in; a run that is under way goes on to its end without it."""
    if job.phase is JobPhase.QUEUED:
        state.queued -= 1
    elif job.phase is JobPhase.FETCHING:
        out.append(AbandonTransfer(source=job.key[0], job_id=job.key[1], fence=job.fence))
    elif job.run is not None:
        run = job.run
        job.run = None
        run.job = None
        state.orphans += 1
        assert job.executor is not None, f"{job.key} runs nowhere"
        executor = state.executors[job.executor]
        if executor.phase is ExecutorPhase.READY:
            dispatch.cancel(executor, run, reason, now_s, out)
    job.phase = JobPhase.DONE


def close(state: State, job: Job, out: Commands) -> None:
    """Forget a job that has left its phase or whose run has ended."""
    job.phase = JobPhase.DONE
    del state.jobs[job.key]
    source = state.sources[job.key[0]]
    if job.epoch == source.epoch:
        source.open_jobs -= 1
    body = job.body
    if body is not None:
        job.body = None
        out.append(ForgetBody(body=body))


def _forget(body: BodyId | None, out: Commands) -> None:
    if body is not None:
        out.append(ForgetBody(body=body))


def finished_note(job: Job, outcome: str, now_s: float) -> Note:
    """One line per job. ``queue_s``: from the offer to the first try; ``run_s``: from then to now."""
    started_at_s = now_s if job.started_at_s is None else job.started_at_s
    return Note(
        level="info",
        event="job.finished",
        facts={
            "source": job.key[0],
            "job_id": job.key[1],
            "executor": job.executor,
            "attempts": job.tries,
            "outcome": outcome,
            # A newer dispatch may have been adopted after the start: nothing waited then.
            "queue_s": round(max(started_at_s - job.offered_at_s, 0.0), 6),
            "run_s": round(now_s - started_at_s, 6),
        },
    )
