"""Which job goes to which executor: oldest first, to the one with the most free slots.

Retries go before first tries. A retry waits for an executor other than the one that failed it, as long as
another one is ready at all; first tries never wait while a slot is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from gpuward_ipc.types import ExecutorName, RunId
from gpuward_supervisor.core.commands import SendAssign, SendCancel
from gpuward_supervisor.core.state import Commands, Executor, Job, JobPhase, Run, State


def choose(ready: Iterable[Executor], avoid: ExecutorName | None = None) -> Executor | None:
    """Pick the executor for a job.

    Args:
        ready: executors that take runs.
        avoid: executor that has just failed this job.

    Returns:
        The one with the most free slots, the longest unused among equals; the one to avoid only when it is
        alone; None when the job has to wait.
    """
    best: Executor | None = None
    best_free = 0
    avoided: Executor | None = None
    others = False
    for executor in ready:
        if executor.name == avoid:
            avoided = executor
            continue
        others = True
        free = executor.slots - len(executor.runs)
        if free > best_free or (free == best_free and best is not None and executor.last_run < best.last_run):
            best = executor
            best_free = free
    if best is None and avoided is not None and not others and avoided.slots > len(avoided.runs):
        return avoided
    return best


def dispatch(state: State, now_s: float, out: Commands) -> None:
    """Start as many waiting jobs as there are slots for."""
    if not state.queued or not state.ready:
        return
    if state.retries:
        waiting: deque[Job] = deque()
        for job in state.retries:
            if job.phase is not JobPhase.QUEUED:
                continue
            executor = choose(state.ready, job.executor)
            if executor is None:
                waiting.append(job)
            else:
                _assign(state, job, executor, now_s, out)
        state.retries = waiting
    queue = state.queue
    while queue:
        if queue[0].phase is not JobPhase.QUEUED:
            queue.popleft()
            continue
        executor = choose(state.ready)
        if executor is None:
            return
        _assign(state, queue.popleft(), executor, now_s, out)


def assign_again(executor: Executor, job: Job, run: Run, now_s: float, out: Commands) -> None:
    """Repeat the assignment of a run that the executor does not seem to know; a known one is ignored."""
    run.sent_at_s = now_s
    out.append(_assignment(executor, job, run))


def cancel(executor: Executor, run: Run, reason: str, now_s: float, out: Commands) -> None:
    """Tell an executor to give up a run."""
    run.sent_at_s = now_s
    out.append(
        SendCancel(executor=executor.name, incarnation=executor.incarnation, run=run.run, reason=reason)
    )


def _assign(state: State, job: Job, executor: Executor, now_s: float, out: Commands) -> None:
    state.last_run += 1
    run = Run(RunId(state.last_run), job, now_s, now_s)
    executor.runs[run.run] = run
    executor.last_run = state.last_run
    state.queued -= 1
    job.phase = JobPhase.RUNNING
    job.run = run
    job.executor = executor.name
    job.tries += 1
    if job.started_at_s is None:
        job.started_at_s = now_s
    out.append(_assignment(executor, job, run))


def _assignment(executor: Executor, job: Job, run: Run) -> SendAssign:
    assert job.body is not None, f"{job.key} is assigned without a payload"
    return SendAssign(
        executor=executor.name,
        incarnation=executor.incarnation,
        run=run.run,
        job_id=job.key[1],
        task=job.task,
        config_id=job.config_id,
        attempt=job.tries,
        body=job.body,
        transient=not job.persisted,
    )
