"""The end of the node: accepted jobs finish, reports are delivered, engines stop, sources close, exit.

The order, and what may cut it short:

1. DRAINING, until no job is left, or the grace is over, or nothing is left that could run them.
2. STOPPING: jobs that are left are failed; executors stop (killed when late) while owed reports are flushed;
   a source closes once everything it is owed is delivered, or its time is up.
3. ENDED: all executors are gone and all sources closed.
"""

from __future__ import annotations

from math import inf

from gpuward_supervisor.core import capacity, executors, jobs
from gpuward_supervisor.core.commands import CloseSource, Exit, Note, SendStop
from gpuward_supervisor.core.events import (
    JournalFailed,
    JournalRestored,
    SourceClosed,
    SourceFailed,
    StopNow,
    StopRequested,
)
from gpuward_supervisor.core.state import (
    HOPEFUL_PHASES,
    Commands,
    ExecutorPhase,
    NodePhase,
    Source,
    State,
    Stop,
)

SHUTDOWN_ERROR = "worker shut down before the job finished"
NO_EXECUTOR_ERROR = "no executor left on this worker"
#: Time beyond ``engine_stop_s`` for an executor to say goodbye and leave.
KILL_SLACK_S = 2.0
#: How long a draining node waits for jobs that the queue sent before it read the announcement.
CROSSING_S = 0.3
#: How long a source may take to close when everything is in a hurry, or its time was up already.
CLOSE_HURRIED_S = 1.0
#: Time beyond what a source was given after which it counts as closed.
CLOSE_SLACK_S = 2.0


def stop_requested(state: State, event: StopRequested, now_s: float, out: Commands) -> None:
    """An orderly stop was asked for."""
    grace_s = state.policy.shutdown_grace_s if event.grace_s is None else event.grace_s
    begin(state, 0, event.reason, SHUTDOWN_ERROR, grace_s, now_s, out)


def stop_now(state: State, event: StopNow, now_s: float, out: Commands) -> None:
    """A stop was asked for that waits for nothing."""
    begin(state, 0, event.reason, SHUTDOWN_ERROR, 0.0, now_s, out)
    stop = state.stop
    assert stop is not None, "a node that drains knows why"
    if stop.hurried:
        return
    stop.hurried = True
    stop.close_at_s = min(stop.close_at_s, now_s)
    for source in state.sources.values():
        source.close_by_s = min(source.close_by_s, now_s + CLOSE_HURRIED_S + CLOSE_SLACK_S)
    for executor in state.executors.values():
        if executor.phase in {ExecutorPhase.STOPPING, ExecutorPhase.DYING} and not executor.kills:
            executors.kill(state, executor, "stopping at once", now_s, out)


def source_closed(state: State, event: SourceClosed, now_s: float, out: Commands) -> None:
    """A source has ended as it was told to."""
    source = state.sources[event.source]
    if not source.closed:
        _end_source(state, source, now_s, out)


def source_failed(state: State, event: SourceFailed, now_s: float, out: Commands) -> None:
    """A source has ended by itself; without any source the node is of no use."""
    source = state.sources[event.source]
    if source.closed:
        return
    out.append(
        Note(level="error", event="source.failed", facts={"source": source.name, "error": event.error})
    )
    _end_source(state, source, now_s, out)
    if all(s.closed for s in state.sources.values()):
        reason = f"no source left: {source.name}: {event.error}"
        begin(state, 1, reason, SHUTDOWN_ERROR, state.policy.shutdown_grace_s, now_s, out)


def journal_failed(state: State, _event: JournalFailed, _now_s: float, _out: Commands) -> None:
    """Results are in memory only for now; jobs go on. The outbox has said so, with what it means."""
    state.journal_ok = False


def journal_restored(state: State, _event: JournalRestored, _now_s: float, _out: Commands) -> None:
    """Results are durable again; said by the outbox, too."""
    state.journal_ok = True


def begin(
    state: State, code: int, reason: str, job_error: str, grace_s: float, now_s: float, out: Commands
) -> None:
    """Begin the end, or bring a begun one nearer.

    Args:
        state: the state.
        code: exit code; 0 only for an end that was asked for.
        reason: why, for people.
        job_error: what to tell the callers of jobs that cannot finish.
        grace_s: how long accepted jobs may take; a shorter one replaces a longer one.
        now_s: the time.
        out: collects the commands.
    """
    stop = state.stop
    if stop is not None:
        stop.grace_until_s = min(stop.grace_until_s, now_s + grace_s)
        stop.crossing_until_s = min(stop.crossing_until_s, stop.grace_until_s)
        return
    state.stop = Stop(reason, code, now_s + grace_s, job_error)
    state.phase = NodePhase.DRAINING
    if any(source.registered and not source.paused for source in state.sources.values()):
        state.stop.crossing_until_s = now_s + min(grace_s, CROSSING_S)
    out.append(
        Note(
            level="error" if code else "info",
            event="node.draining",
            facts={"reason": reason, "grace_s": grace_s, "jobs": len(state.jobs)},
        )
    )
    capacity.announce_drain(state, out)
    for executor in state.executors.values():
        if executor.phase in {ExecutorPhase.PLANNED, ExecutorPhase.BACKOFF}:
            executor.phase = ExecutorPhase.STOPPED
            executor.due_s = inf


def advance(state: State, now_s: float, out: Commands) -> None:
    """Begin what is due: the end of a node without executors, the stop of a drained one."""
    if state.phase is NodePhase.RUNNING and not state.ready and _none_left(state):
        causes = "; ".join(f"{e.name}: {e.detail}" for e in state.executors.values())
        begin(state, 1, f"no executor left: {causes}", NO_EXECUTOR_ERROR, 0.0, now_s, out)
    stop = state.stop
    if state.phase is not NodePhase.DRAINING or stop is None:
        return
    done = not state.jobs and not state.uploading and now_s >= stop.crossing_until_s
    hopeless = bool(state.jobs) and not any(e.phase in HOPEFUL_PHASES for e in state.executors.values())
    if done or hopeless or now_s >= stop.grace_until_s:
        _stop(state, stop, now_s, out)


def conclude(state: State, now_s: float, out: Commands) -> None:
    """In a stopping node, close the sources that are done, and exit when everything is."""
    stop = state.stop
    if state.phase is not NodePhase.STOPPING or stop is None:
        return
    for source in state.sources.values():
        if source.closed:
            continue
        if source.closing:
            if now_s >= source.close_by_s:
                out.append(Note(level="error", event="source.abandoned", facts={"source": source.name}))
                _end_source(state, source, now_s, out)
        elif source.owed == 0 or now_s >= stop.close_at_s:
            in_time = source.owed == 0 and not stop.hurried
            within_s = state.policy.source_close_s if in_time else CLOSE_HURRIED_S
            source.closing = True
            source.close_by_s = now_s + within_s + CLOSE_SLACK_S
            out.append(CloseSource(source=source.name, within_s=within_s))
    if all(s.closed for s in state.sources.values()) and all(
        map(executors.is_gone, state.executors.values())
    ):
        state.phase = NodePhase.ENDED
        out.append(
            Note(
                level="error" if stop.code else "info",
                event="node.stopped",
                facts={"reason": stop.reason, "code": stop.code, "reports_owed": len(state.owed)},
            )
        )
        out.append(Exit(code=stop.code, reason=stop.reason))


def next_due(state: State) -> float | None:
    """When the clock has to bring the end forward; None for not at all."""
    stop = state.stop
    if stop is None:
        return None
    if state.phase is NodePhase.DRAINING:
        idle = not state.jobs and not state.uploading
        return min(stop.crossing_until_s, stop.grace_until_s) if idle else stop.grace_until_s
    if state.phase is not NodePhase.STOPPING:
        return None
    dues = [
        source.close_by_s if source.closing else stop.close_at_s
        for source in state.sources.values()
        if not source.closed
    ]
    return min(dues, default=None)


def _none_left(state: State) -> bool:
    return all(e.phase is ExecutorPhase.FAILED for e in state.executors.values())


def _stop(state: State, stop: Stop, now_s: float, out: Commands) -> None:
    policy = state.policy
    state.phase = NodePhase.STOPPING
    stop.close_at_s = now_s if stop.hurried else now_s + policy.source_close_s
    for job in list(state.jobs.values()):
        jobs.fail(state, job, stop.job_error, now_s, out)
    for executor in state.executors.values():
        phase = executor.phase
        if phase not in HOPEFUL_PHASES:
            continue
        executors.begin_stop(state, executor, now_s + policy.engine_stop_s + KILL_SLACK_S)
        if stop.hurried or phase is ExecutorPhase.SPAWNING:  # no link yet that could carry a ``Stop``
            executors.kill(state, executor, "stopping at once", now_s, out)
        else:
            out.append(
                SendStop(
                    executor=executor.name, incarnation=executor.incarnation, grace_s=policy.engine_stop_s
                )
            )


def _end_source(state: State, source: Source, now_s: float, out: Commands) -> None:
    source.closed = True
    source.capacity_due_s = inf
    if source.connection is not None:
        capacity.end_connection(state, source, now_s, out)
