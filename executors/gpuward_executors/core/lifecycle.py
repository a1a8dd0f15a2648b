"""The one life of an executor: hello, engine up, ready, stopped or dead, gone; and its deadlines."""

from __future__ import annotations

from gpuward_executors.core.commands import (
    CancelRun,
    ExecutorCommand,
    Exit,
    Facts,
    ForgetPayload,
    KillEngine,
    Note,
    ProbeEngine,
    Send,
    StartEngine,
    StopEngine,
)
from gpuward_executors.core.events import EngineAnswered, EngineEnded, EngineHealth, EngineProbed
from gpuward_executors.core.runs import engine_cleared, held, resend_unacked, start_queued
from gpuward_executors.core.state import (
    EXIT_ENGINE_DIED,
    EXIT_STOPPED,
    EXIT_SUPERVISOR_GONE,
    RunStage,
    Stage,
    State,
)
from gpuward_ipc.messages import EngineExited, Goodbye, Heartbeat, Hello, Ready, Stop, Welcome
from gpuward_ipc.types import EXIT_ENGINE_IMPOSSIBLE, PROTOCOL_VERSION


def ticked(state: State, now_s: float) -> list[ExecutorCommand]:
    """Do what is due."""
    if state.stage is Stage.WAITING:
        return _wait_for_welcome(state, now_s)
    commands: list[ExecutorCommand] = []
    if _due(state.beat_at_s, now_s):
        commands += _beat(state, now_s)
    if _due(state.reprobe_at_s, now_s):
        state.reprobe_at_s = None
        state.probed.update(state.unprobed)
        state.unprobed = {}
        commands.append(ProbeEngine())
    if _due(state.ready_by_s, now_s):
        state.ready_by_s = None
        commands += _give_engine_up(
            state,
            f"the engine was not ready {state.policy.start_timeout_s:g} s after its start "
            f"(last phase: {state.phase}); raise start_timeout_s if it only needs longer",
            now_s,
        )
    if _due(state.stop_engine_at_s, now_s):
        commands += _stop_engine(state, now_s)
    if _due(state.leave_at_s, now_s):
        commands += _leave_without_engine_status(state)
    return commands


def welcomed(state: State, event: Welcome, now_s: float) -> list[ExecutorCommand]:
    """Start the engine at the first welcome."""
    if state.stage is not Stage.WAITING:
        return []
    if event.protocol != PROTOCOL_VERSION:
        facts: Facts = {"supervisor_protocol": event.protocol, "executor_protocol": PROTOCOL_VERSION}
        note = Note(level="error", event="executor.protocol_differs", facts=facts)
        return [note, *_leave(state, EXIT_SUPERVISOR_GONE)]
    state.stage = Stage.STARTING
    state.hello_at_s = state.welcome_by_s = None
    state.heartbeat_s = event.heartbeat_s
    state.ready_by_s = now_s + state.policy.start_timeout_s
    return [*_beat(state, now_s), StartEngine()]


def engine_answered(state: State, event: EngineAnswered) -> list[ExecutorCommand]:
    """Open for runs."""
    if state.stage is not Stage.STARTING:
        return []
    state.stage = Stage.READY
    state.ready_by_s = None
    state.engine_version = event.engine_version
    ready = Ready(state.policy.slots, event.engine_version, state.engine_pid)
    facts: Facts = {"pid": state.engine_pid, "version": event.engine_version}
    return [Send(message=ready), Note(level="info", event="engine.ready", facts=facts), *start_queued(state)]


# The engine's end means, by stage:
#   STARTING, READY   its death, whatever its exit code says (a vLLM server whose core died exits 0)
#   STOPPING          what was asked for
#   DYING             the kill that was asked for; the cause is known already


def engine_ended(state: State, event: EngineEnded) -> list[ExecutorCommand]:
    """Leave: an engine's end is its executor's end."""
    if state.stage is Stage.STOPPING:
        return [Send(message=Goodbye()), *_leave(state, EXIT_STOPPED)]
    detail = state.cause or event.detail
    if state.cause and event.detail:
        detail = f"{state.cause}; {event.detail}"
    permanent = event.permanent and not state.cause
    facts: Facts = {
        "exit_code": event.exit_code,
        "signal": event.signal,
        "detail": detail,
        "permanent": permanent,
        "stage": state.stage.value,
        "runs": len(state.running),
    }
    return [
        Send(message=EngineExited(event.exit_code, event.signal, detail, permanent)),
        Note(level="error", event="engine.died", facts=facts),
        *_leave(state, EXIT_ENGINE_IMPOSSIBLE if permanent else EXIT_ENGINE_DIED),
    ]


def engine_probed(state: State, event: EngineProbed, now_s: float) -> list[ExecutorCommand]:
    """Settle the suspect runs: their own failure, or the engine's death."""
    if state.stage is not Stage.READY or not state.probing:
        return []
    if event.health is not EngineHealth.DEAD:
        # Silent counts as alive: a health address that is only slow must not cost all runs here.
        state.looked_dead = False
        return engine_cleared(state, now_s)
    if not state.looked_dead:
        # Its exit is on its way as a rule, and tells more than a kill of ours would.
        state.looked_dead = True
        state.reprobe_at_s = now_s + state.policy.reprobe_after_s
        return []
    error = next(iter(state.probed.values()), "")
    return _give_engine_up(
        state,
        f"the engine's process lives but its health check fails, after a run ended with: {error}",
        now_s,
    )


def stop_asked(state: State, event: Stop, now_s: float) -> list[ExecutorCommand]:
    """Abandon all runs, then stop the engine; a second stop can only shorten the grace."""
    if state.stage is Stage.WAITING:
        return [Send(message=Goodbye()), *_leave(state, EXIT_STOPPED)]
    if state.stage is Stage.DYING:
        return []
    if state.stage is Stage.STOPPING:
        if event.grace_s >= state.stop_grace_s:
            return []
        state.stop_grace_s = event.grace_s
        return _stop_engine(state, now_s)
    state.stage = Stage.STOPPING
    state.stop_grace_s = event.grace_s
    state.ready_by_s = state.reprobe_at_s = None
    commands: list[ExecutorCommand] = [ForgetPayload(run=run) for run in state.queued]
    state.queued.clear()
    for run, stage in list(state.running.items()):
        if stage is RunStage.SUSPECT:
            del state.running[run]
            continue
        if stage is RunStage.RUNNING:
            commands.append(CancelRun(run=run))
        state.running[run] = RunStage.CANCELLING
    state.probed.clear()
    state.unprobed.clear()
    state.probing = False
    if state.running and event.grace_s > 0:
        state.stop_engine_at_s = now_s + min(state.policy.settle_s, event.grace_s / 2)
        return commands
    return commands + _stop_engine(state, now_s)


def _stop_engine(state: State, now_s: float) -> list[ExecutorCommand]:
    """Stop the engine now, and leave without its status if even a kill does not end it."""
    state.stop_engine_at_s = None
    state.leave_at_s = now_s + state.stop_grace_s + state.policy.kill_within_s
    return [StopEngine(grace_s=state.stop_grace_s)]


def _wait_for_welcome(state: State, now_s: float) -> list[ExecutorCommand]:
    if state.welcome_by_s is None:
        state.welcome_by_s = now_s + state.policy.welcome_timeout_s
        state.hello_at_s = now_s
    if now_s >= state.welcome_by_s:
        facts: Facts = {"waited_s": state.policy.welcome_timeout_s}
        note = Note(level="error", event="executor.not_welcomed", facts=facts)
        return [note, *_leave(state, EXIT_SUPERVISOR_GONE)]
    if not _due(state.hello_at_s, now_s):
        return []
    state.hello_at_s = now_s + state.policy.hello_every_s
    policy = state.policy
    return [Send(message=Hello(policy.executor, policy.incarnation, policy.pid, version=policy.version))]


def _beat(state: State, now_s: float) -> list[ExecutorCommand]:
    state.seq += 1
    state.beat_at_s = now_s + state.heartbeat_s
    if state.stage is Stage.STARTING:
        phase = state.phase
    elif state.probing:
        phase = "engine suspected dead"
    else:
        phase = state.stage.value
    beat = Heartbeat(
        seq=state.seq,
        runs=held(state),
        slots=state.policy.slots if state.stage is Stage.READY else 0,
        phase=phase,
        engine_rss_bytes=state.engine_rss_bytes,
    )
    return [Send(message=beat), *resend_unacked(state, now_s)]


def _give_engine_up(state: State, cause: str, now_s: float) -> list[ExecutorCommand]:
    state.stage = Stage.DYING
    state.cause = cause
    state.ready_by_s = state.reprobe_at_s = None
    state.leave_at_s = now_s + state.policy.kill_within_s
    return [Note(level="error", event="engine.given_up", facts={"cause": cause}), KillEngine()]


def _leave_without_engine_status(state: State) -> list[ExecutorCommand]:
    note = Note(level="error", event="engine.does_not_die", facts={"pid": state.engine_pid})
    if state.stage is Stage.STOPPING:
        return [note, Send(message=Goodbye()), *_leave(state, EXIT_STOPPED)]
    detail = f"{state.cause}; it was killed but did not end"
    return [note, Send(message=EngineExited(detail=detail)), *_leave(state, EXIT_ENGINE_DIED)]


def _leave(state: State, code: int) -> list[ExecutorCommand]:
    state.stage = Stage.GONE
    state.hello_at_s = state.welcome_by_s = state.beat_at_s = state.ready_by_s = None
    state.reprobe_at_s = state.stop_engine_at_s = state.leave_at_s = None
    return [Exit(code=code)]


def _due(at_s: float | None, now_s: float) -> bool:
    return at_s is not None and now_s >= at_s
