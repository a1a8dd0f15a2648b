"""The life of an executor: spawned, connected, ready, dead, swept, waiting, spawned again.

Only messages of the current incarnation count. What the clock does to an executor next stands in its
``due_s``: a missing hello, engine or heartbeat kills it, a kill without effect is repeated, a backoff ends.
"""

from __future__ import annotations

from math import inf

from gpuward_ipc.types import EXIT_ENGINE_IMPOSSIBLE, Incarnation
from gpuward_supervisor.core import dispatch, restarts, runs
from gpuward_supervisor.core.commands import Kill, Note, SendCancel, SendPulse, SendWelcome, Spawn
from gpuward_supervisor.core.events import (
    EngineDied,
    ExecutorBeat,
    ExecutorConnected,
    ExecutorExited,
    ExecutorReady,
    ExecutorRefused,
    ExecutorSpawned,
    ExecutorSpawnFailed,
    ExecutorSwept,
)
from gpuward_supervisor.core.state import (
    GONE_PHASES,
    HOPEFUL_PHASES,
    Commands,
    Executor,
    ExecutorPhase,
    NodePhase,
    State,
)

#: A process that has not ended this long after its kill, or after its engine's death, is killed (again).
KILL_REPEAT_S = 5.0
#: A stopping node does not wait for a process that outlived this many kills: it hangs in the kernel.
KILLS_MAX = 6

_EXITABLE_PHASES = HOPEFUL_PHASES | {ExecutorPhase.DYING, ExecutorPhase.STOPPING}


# ---------------------------------------------------------------- events


def spawned(state: State, event: ExecutorSpawned, _now_s: float, out: Commands) -> None:
    """The process of an incarnation runs."""
    executor = _current(state, event)
    if executor is None:
        return
    executor.pid = event.pid
    out.append(_note("info", "executor.spawned", executor, pid=event.pid))


def spawn_failed(state: State, event: ExecutorSpawnFailed, now_s: float, out: Commands) -> None:
    """There is no process: as a death, with nothing to sweep."""
    executor = _current(state, event)
    if executor is None or executor.phase not in _EXITABLE_PHASES:
        return
    executor.detail = event.error
    _died(state, executor, f"executor {executor.name} could not be started: {event.error}", None, now_s, out)
    _swept(state, executor, now_s, out)


def connected(state: State, event: ExecutorConnected, now_s: float, out: Commands) -> None:
    """An incarnation said hello; a repeated hello means that the welcome was lost."""
    executor = _current(state, event)
    if executor is None:
        return
    if executor.phase is ExecutorPhase.SPAWNING:
        policy = state.policy
        executor.phase = ExecutorPhase.STARTING
        executor.connected = True
        executor.start_by_s = now_s + policy.start_timeout_s
        _heard(state, executor, now_s)
        state.pulse_at_s = min(state.pulse_at_s, now_s + policy.heartbeat_s)
        out.append(_note("info", "executor.connected", executor, version=event.version))
    elif executor.phase not in {ExecutorPhase.STARTING, ExecutorPhase.READY}:
        return
    out.append(SendWelcome(executor=executor.name, incarnation=executor.incarnation))


def refused(state: State, event: ExecutorRefused, now_s: float, out: Commands) -> None:
    """An incarnation speaks another protocol: the next one would too."""
    executor = _current(state, event)
    if executor is None or executor.phase not in HOPEFUL_PHASES:
        return
    executor.permanent = True
    kill(state, executor, event.error, now_s, out)


def ready(state: State, event: ExecutorReady, now_s: float, out: Commands) -> None:
    """The engine of an incarnation answers."""
    executor = _current(state, event)
    if executor is not None and executor.phase is ExecutorPhase.STARTING and event.slots > 0:
        executor.engine_version = event.engine_version
        _become_ready(state, executor, event.slots, now_s, out)


def beat(state: State, event: ExecutorBeat, now_s: float, out: Commands) -> None:
    """An incarnation is alive, and says what it holds: repair what was lost on the way."""
    executor = _current(state, event)
    if executor is None or event.seq <= executor.beat_seq:
        return
    executor.beat_seq = event.seq
    executor.engine_phase = event.phase
    if executor.phase is ExecutorPhase.STARTING or executor.phase is ExecutorPhase.READY:
        _heard(state, executor, now_s)
    if executor.phase is ExecutorPhase.STARTING and event.slots > 0:  # its ``Ready`` was lost
        _become_ready(state, executor, event.slots, now_s, out)
    if executor.phase is ExecutorPhase.READY:
        _compare_runs(state, executor, event, now_s, out)


def engine_died(state: State, event: EngineDied, now_s: float, out: Commands) -> None:
    """An incarnation's engine is gone: no more runs for it; those that it has end with its process."""
    executor = _current(state, event)
    if executor is None or executor.phase not in HOPEFUL_PHASES:
        return
    executor.detail = event.detail
    executor.permanent = executor.permanent or event.permanent
    _leave_ready(state, executor)
    executor.phase = ExecutorPhase.DYING
    executor.due_s = now_s + KILL_REPEAT_S


def exited(state: State, event: ExecutorExited, now_s: float, out: Commands) -> None:
    """The process of an incarnation is gone: what it worked on is tried elsewhere."""
    executor = _current(state, event)
    if executor is None or executor.phase not in _EXITABLE_PHASES:
        return
    if event.signal is not None:
        status = f"signal {event.signal}"
    elif event.exit_code is not None:
        status = f"exit code {event.exit_code}"
    else:
        status = "status unknown"
    if event.exit_code == EXIT_ENGINE_IMPOSSIBLE:
        # Its last words may have been lost on the way; the exit code says the same.
        executor.permanent = True
        executor.detail = executor.detail or "its engine cannot run as it is configured"
    _died(state, executor, f"executor {executor.name} died ({status})", event, now_s, out)


def swept(state: State, event: ExecutorSwept, now_s: float, out: Commands) -> None:
    """Nothing of an incarnation is left: the next one may follow when its time has come."""
    executor = _current(state, event)
    if executor is not None and executor.phase is ExecutorPhase.SWEEPING:
        _swept(state, executor, now_s, out)


# ---------------------------------------------------------------- the clock


def on_time(state: State, now_s: float, out: Commands) -> None:
    """Do what has fallen due: first starts, respawns, kills, pulses."""
    policy = state.policy
    # A pulse that is overdue by half a heartbeat timeout means that we ourselves stood still (a stopped
    # process, a suspended machine): nobody's silence can be judged by that; everybody gets a fresh period.
    stood_still = now_s - state.pulse_at_s > policy.heartbeat_timeout_s / 2
    for executor in state.executors.values():
        phase = executor.phase
        if phase is ExecutorPhase.PLANNED:
            if state.phase is NodePhase.RUNNING:
                _spawn(state, executor, now_s, out)
        elif executor.due_s <= now_s:
            if stood_still and phase in {ExecutorPhase.STARTING, ExecutorPhase.READY}:
                _heard(state, executor, now_s)
            if executor.due_s <= now_s:
                _due(state, executor, now_s, out)
    if state.pulse_at_s <= now_s:
        state.pulse_at_s = inf
        for executor in state.executors.values():
            if executor.connected:
                out.append(SendPulse(executor=executor.name, incarnation=executor.incarnation))
                state.pulse_at_s = now_s + policy.heartbeat_s


def kill(state: State, executor: Executor, reason: str, now_s: float, out: Commands) -> None:
    """Kill an incarnation, and again until its end is seen; it takes no more runs."""
    _leave_ready(state, executor)
    if executor.phase is not ExecutorPhase.STOPPING:
        executor.phase = ExecutorPhase.DYING
    executor.kills += 1
    executor.detail = executor.detail or reason
    executor.due_s = now_s + KILL_REPEAT_S
    out.append(Kill(executor=executor.name, incarnation=executor.incarnation, reason=reason))
    level = "warning" if executor.kills == 1 else "error"
    out.append(_note(level, "executor.killed", executor, reason=reason, kills=executor.kills))


def begin_stop(state: State, executor: Executor, kill_at_s: float) -> None:
    """Enter the orderly stop of an executor that may still be alive; the caller tells it."""
    _leave_ready(state, executor)
    executor.phase = ExecutorPhase.STOPPING
    executor.due_s = kill_at_s


# ---------------------------------------------------------------- parts


def _current(
    state: State,
    event: ExecutorSpawned
    | ExecutorSpawnFailed
    | ExecutorConnected
    | ExecutorRefused
    | ExecutorReady
    | ExecutorBeat
    | EngineDied
    | ExecutorExited
    | ExecutorSwept,
) -> Executor | None:
    """The executor of an event; None when the event is of another incarnation."""
    executor = state.executors.get(event.executor)
    if executor is None or executor.incarnation != event.incarnation:
        state.counters.stale_messages += 1
        return None
    return executor


def _spawn(state: State, executor: Executor, now_s: float, out: Commands) -> None:
    if executor.incarnation > 0:
        executor.restarts += 1
    executor.incarnation = Incarnation(executor.incarnation + 1)
    executor.phase = ExecutorPhase.SPAWNING
    executor.pid = 0
    executor.connected = False
    executor.beat_seq = 0
    executor.engine_phase = ""
    executor.engine_version = ""
    executor.ready_at_s = None
    executor.detail = ""
    executor.permanent = False
    executor.kills = 0
    executor.spawn_at_s = inf
    executor.due_s = now_s + state.policy.hello_timeout_s
    out.append(Spawn(executor=executor.name, incarnation=executor.incarnation))


def _heard(state: State, executor: Executor, now_s: float) -> None:
    executor.last_beat_s = now_s
    executor.due_s = now_s + state.policy.heartbeat_timeout_s
    if executor.phase is ExecutorPhase.STARTING:
        executor.due_s = min(executor.due_s, executor.start_by_s)


def _become_ready(state: State, executor: Executor, slots: int, now_s: float, out: Commands) -> None:
    executor.phase = ExecutorPhase.READY
    executor.slots = min(slots, executor.planned_slots)
    executor.ready_at_s = now_s
    executor.start_by_s = inf
    _heard(state, executor, now_s)
    state.was_ready = True
    state.alive_slots += executor.slots
    # Rebuilt rather than appended to: the order is that of the plan, whatever the order of starts.
    state.ready = [e for e in state.executors.values() if e.phase is ExecutorPhase.READY]
    out.append(_note("info", "executor.ready", executor, slots=executor.slots))


def _leave_ready(state: State, executor: Executor) -> None:
    if executor.phase is ExecutorPhase.READY:
        state.alive_slots -= executor.slots
        state.ready.remove(executor)
    executor.slots = 0


def _compare_runs(state: State, executor: Executor, event: ExecutorBeat, now_s: float, out: Commands) -> None:
    listed = frozenset(event.runs)
    for run_id in event.runs:
        if run_id not in executor.runs:
            # Finished here, or never ours: the executor answers with the outcome, and that is acknowledged.
            out.append(
                SendCancel(
                    executor=executor.name,
                    incarnation=executor.incarnation,
                    run=run_id,
                    reason="nobody wants this run",
                )
            )
    patience_s = state.policy.reassign_after_s
    for run in executor.runs.values():
        if now_s - run.sent_at_s <= patience_s:
            continue
        if run.job is None:
            dispatch.cancel(executor, run, "nobody wants this run", now_s, out)
        elif run.run not in listed:
            dispatch.assign_again(executor, run.job, run, now_s, out)


def _due(state: State, executor: Executor, now_s: float, out: Commands) -> None:
    policy = state.policy
    match executor.phase:
        case ExecutorPhase.SPAWNING:
            kill(state, executor, f"no hello within {policy.hello_timeout_s:g} s", now_s, out)
        case ExecutorPhase.STARTING if executor.start_by_s <= now_s:
            kill(state, executor, f"engine not ready within {policy.start_timeout_s:g} s", now_s, out)
        case ExecutorPhase.STARTING | ExecutorPhase.READY:
            kill(state, executor, f"no heartbeat for {policy.heartbeat_timeout_s:g} s", now_s, out)
        case ExecutorPhase.DYING | ExecutorPhase.STOPPING:
            if executor.kills >= KILLS_MAX and state.phase is NodePhase.STOPPING:
                _abandon(state, executor, out)
            elif executor.kills:
                kill(state, executor, "still there after a kill", now_s, out)
            elif executor.phase is ExecutorPhase.STOPPING:
                kill(state, executor, f"did not stop within {policy.engine_stop_s:g} s", now_s, out)
            else:
                kill(state, executor, "still there after its engine's death", now_s, out)
        case ExecutorPhase.BACKOFF:
            _spawn(state, executor, now_s, out)
        case _:
            executor.due_s = inf


def _died(
    state: State, executor: Executor, error: str, event: ExecutorExited | None, now_s: float, out: Commands
) -> None:
    """The process is gone: count it, and give its jobs away."""
    expected = executor.phase is ExecutorPhase.STOPPING
    _leave_ready(state, executor)
    executor.phase = ExecutorPhase.SWEEPING
    executor.connected = False
    executor.due_s = inf
    if not expected:
        state.counters.deaths += 1
        out.append(
            _note(
                "warning",
                "executor.died",
                executor,
                exit_code=None if event is None else event.exit_code,
                signal=None if event is None else event.signal,
                detail=executor.detail,
                jobs=len(executor.runs),
            )
        )
        if not restarts.record_death(executor, state.policy, state.rng, now_s):
            executor.permanent = True
            executor.detail = (
                f"died {len(executor.deaths)} times within {state.policy.restart_period_s:g} s, "
                f"at most {state.policy.restart_intensity} are borne"
            )
    runs.lose(state, executor, error, now_s, out)


def _swept(state: State, executor: Executor, now_s: float, out: Commands) -> None:
    if state.phase is not NodePhase.RUNNING:
        executor.phase = ExecutorPhase.STOPPED
    elif executor.permanent:
        executor.phase = ExecutorPhase.FAILED
        out.append(_note("error", "executor.failed", executor, reason=executor.detail))
    elif executor.spawn_at_s <= now_s:
        _spawn(state, executor, now_s, out)
    else:
        executor.phase = ExecutorPhase.BACKOFF
        executor.due_s = executor.spawn_at_s
        delay_s = round(executor.spawn_at_s - now_s, 3)
        out.append(
            _note("info", "executor.respawn_scheduled", executor, delay_s=delay_s, failures=executor.failures)
        )


def _abandon(state: State, executor: Executor, out: Commands) -> None:
    """End without seeing the end of a process that no kill ends; the exit code says that all is not well."""
    assert state.stop is not None, "an executor is abandoned only by a stopping node"
    executor.phase = ExecutorPhase.FAILED
    executor.connected = False
    executor.due_s = inf
    state.orphans -= len(executor.runs)
    executor.runs.clear()
    state.stop.code = 1
    reason = f"outlived {executor.kills} kills"
    out.append(_note("error", "executor.abandoned", executor, reason=reason))


def is_gone(executor: Executor) -> bool:
    """Whether no process of the executor is left and none will be started."""
    return executor.phase in GONE_PHASES


def _note(level: str, event: str, executor: Executor, **facts: str | float | None) -> Note:
    return Note(
        level=level,
        event=event,
        facts={"executor": executor.name, "incarnation": executor.incarnation, **facts},
    )
