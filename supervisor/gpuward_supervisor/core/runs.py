"""Runs as the executors tell of them: succeeded, failed, cancelled, further on, lost with their executor.

A message counts only for a run that its sender has, in its current incarnation; whatever else comes is stale.
Stale or not, the sender hears that its outcome has arrived, so that it stops repeating it.
"""

from __future__ import annotations

from typing import TypeAlias

from gpuward_ipc.types import Fault
from gpuward_supervisor.core import jobs, leases, reports
from gpuward_supervisor.core.commands import ForgetBody, Note, SendAck
from gpuward_supervisor.core.events import RunCancelled, RunFailed, RunProgressed, RunSucceeded
from gpuward_supervisor.core.state import (
    Commands,
    Executor,
    Job,
    JobPhase,
    Run,
    State,
)

RunOutcome: TypeAlias = RunSucceeded | RunFailed | RunCancelled


def succeeded(state: State, event: RunSucceeded, now_s: float, out: Commands) -> None:
    """A run ended well: its result is owed, if anybody wants it."""
    run = _end_run(state, event, out)
    job = None if run is None else run.job
    if job is None:
        out.append(ForgetBody(body=event.body))
        return
    job.run = None
    state.counters.succeeded += 1
    jobs.close(state, job, out)
    reports.owe_result(
        state, job.key, job.fence, job.persisted, event.body, event.body_bytes, job.upload_url, now_s, out
    )
    if state.policy.job_notes:
        out.append(jobs.finished_note(job, "succeeded", now_s))


def failed(state: State, event: RunFailed, now_s: float, out: Commands) -> None:
    """A run failed on a living executor: the job's fault is reported, the engine's is tried again."""
    run = _end_run(state, event, out)
    job = None if run is None else run.job
    if job is None:
        return
    if event.fault is Fault.JOB:
        jobs.fail(state, job, event.error, now_s, out)
    else:
        retry_or_fail(state, job, event.error, now_s, out)


def cancelled(state: State, event: RunCancelled, now_s: float, out: Commands) -> None:
    """A run was given up; a job that is still wanted is tried again."""
    run = _end_run(state, event, out)
    job = None if run is None else run.job
    if job is not None:
        retry_or_fail(state, job, f"executor {event.executor} gave the job up", now_s, out)


def progressed(state: State, event: RunProgressed, now_s: float, out: Commands) -> None:
    """A run got further: pass it on for a persisted job, as that renews its lease."""
    executor = state.executors.get(event.executor)
    run = None
    if executor is not None and executor.incarnation == event.incarnation:
        run = executor.runs.get(event.run)
    if run is None:
        state.counters.stale_messages += 1
        return
    job = run.job
    if job is not None and job.persisted:
        source, job_id = job.key
        leases.pass_on_progress(
            state.sources[source],
            job_id,
            event.progress,
            event.status_message,
            now_s,
            state.policy.lease_renew_s,
            out,
        )


def lose(state: State, executor: Executor, error: str, now_s: float, out: Commands) -> None:
    """An incarnation is gone: its runs have ended, and their jobs are tried elsewhere.

    Args:
        state: the state.
        executor: the executor whose process is known to be gone.
        error: what to say of the lost tries.
        now_s: the time.
        out: collects the commands.
    """
    lost = list(executor.runs.values())
    executor.runs.clear()
    for run in lost:
        if run.job is None:
            state.orphans -= 1
        else:
            retry_or_fail(state, run.job, error, now_s, out)


def retry_or_fail(state: State, job: Job, error: str, now_s: float, out: Commands) -> None:
    """Put a job whose run has ended badly, by no fault of its own, in line again, or report the failure."""
    policy = state.policy
    job.run = None
    wanted = job.persisted or now_s - job.offered_at_s < policy.transient_wait_s
    facts: dict[str, str | int | float | bool | None] = {
        "source": job.key[0],
        "job_id": job.key[1],
        "executor": job.executor,
        "attempts": job.tries,
        "error": error,
    }
    if wanted and job.tries <= policy.attempts_max:
        state.counters.retried += 1
        job.phase = JobPhase.QUEUED
        state.retries.append(job)
        state.queued += 1
        out.append(Note(level="warning", event="job.retried", facts=facts))
        return
    out.append(Note(level="error", event="job.failed", facts=facts))
    attempts = "1 attempt" if job.tries == 1 else f"{job.tries} attempts"
    jobs.fail(state, job, f"failed after {attempts}; last: {error}", now_s, out)


def _end_run(state: State, event: RunOutcome, out: Commands) -> Run | None:
    """Free the slot of a run; None when the message is stale. The executor may forget the run."""
    executor = state.executors.get(event.executor)
    if executor is None or executor.incarnation != event.incarnation:
        state.counters.stale_messages += 1
        return None
    if executor.connected:
        out.append(SendAck(executor=event.executor, incarnation=event.incarnation, runs=(event.run,)))
    run = executor.runs.pop(event.run, None)
    if run is None:
        state.counters.stale_messages += 1
    elif run.job is None:
        state.orphans -= 1
    else:
        run.job.run = None
    return run
