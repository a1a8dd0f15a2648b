"""What becomes of runs: queued, started, ended, told to the supervisor until it acknowledges.

A run is in exactly one of ``queued``, ``running``, ``unacked``, ``acked``; everything here is idempotent by
run number, so that lost, repeated and reordered messages do no harm.
"""

from __future__ import annotations

from gpuward_executors.core.commands import (
    CancelRun,
    ExecutorCommand,
    ForgetPayload,
    ForgetResults,
    ProbeEngine,
    Send,
    StartRun,
)
from gpuward_executors.core.events import RunCancelled, RunFailed, RunSucceeded
from gpuward_executors.core.state import Outcome, RunStage, Sent, Stage, State
from gpuward_ipc.messages import Ack, Assign, Cancel, Cancelled, Failed, Succeeded
from gpuward_ipc.types import Fault, RunId

# What an assignment of a run meets, first match wins:
#   queued                     nothing: the first copy stands
#   running                    drop the second payload
#   ended, not acknowledged    send the outcome again
#   ended and acknowledged     drop the payload
#   older than all remembered  fail it: it may or may not have run here, the supervisor shall choose anew
#   we are leaving             drop it: the supervisor sees our exit
#   a slot is free             start
#   otherwise                  queue


def assigned(state: State, event: Assign, now_s: float) -> list[ExecutorCommand]:
    """Take a run, unless it is known."""
    run = event.run
    if run in state.queued:
        return []
    if run in state.running or run in state.acked:
        return [ForgetPayload(run=run)]
    if run in state.unacked:
        return [ForgetPayload(run=run), _sent_again(state, run, now_s)]
    if run <= state.acked.floor:
        error = f"run {run} came too late: it is older than all runs this executor remembers"
        return [ForgetPayload(run=run), _ended(state, run, Failed(run, error, Fault.ENGINE), now_s)]
    if state.stage is Stage.STOPPING or state.stage is Stage.DYING:
        return [ForgetPayload(run=run)]
    if _may_start(state) and not state.queued:
        state.running[run] = RunStage.RUNNING
        return [StartRun(assign=event)]
    state.queued[run] = event
    return []


def cancelled_by_supervisor(state: State, event: Cancel, now_s: float) -> list[ExecutorCommand]:
    """Give a run up; every cancel of a run that is not acknowledged is answered by an outcome."""
    run = event.run
    if run in state.queued:
        del state.queued[run]
        return [ForgetPayload(run=run), _ended(state, run, Cancelled(run), now_s)]
    stage = state.running.get(run)
    if stage is RunStage.RUNNING:
        state.running[run] = RunStage.CANCELLING
        return [CancelRun(run=run)]
    if stage is RunStage.CANCELLING:
        return []
    if stage is RunStage.SUSPECT:
        state.probed.pop(run, None)
        state.unprobed.pop(run, None)
        del state.running[run]
        return [_ended(state, run, Cancelled(run), now_s)]
    if run in state.unacked:
        return [_sent_again(state, run, now_s)]
    if run in state.acked or run <= state.acked.floor:
        return [Send(message=Cancelled(run))]
    # Not seen yet: the cancel has overtaken its assignment, which must find the run ended.
    return [_ended(state, run, Cancelled(run), now_s)]


def acknowledged(state: State, event: Ack) -> list[ExecutorCommand]:
    """Forget the outcomes that have arrived."""
    results: list[RunId] = []
    for run in event.runs:
        sent = state.unacked.pop(run, None)
        if sent is None:
            continue
        state.acked.add(run)
        if isinstance(sent.outcome, Succeeded) and not sent.outcome.body_path:
            results.append(run)
    return [ForgetResults(runs=tuple(results))] if results else []


def succeeded(state: State, event: RunSucceeded, now_s: float) -> list[ExecutorCommand]:
    """Report a result, also one that was ready before its cancel took effect."""
    run = event.run
    if state.running.pop(run, None) is None:
        return [ForgetResults(runs=(run,))]
    commands: list[ExecutorCommand] = [
        _ended(state, run, Succeeded(run, event.body_bytes, event.body_path), now_s)
    ]
    if state.queued:
        commands += start_queued(state)
    return commands


def failed(state: State, event: RunFailed, now_s: float) -> list[ExecutorCommand]:
    """Report a failure; one that may mean a dead engine only after a look at the engine."""
    run = event.run
    stage = state.running.get(run)
    if stage is None or stage is RunStage.SUSPECT:
        return []
    if state.stage is Stage.STOPPING or (state.stage is Stage.DYING and event.fault is Fault.ENGINE):
        # Abandoned: the supervisor settles it when this process is gone.
        del state.running[run]
        return []
    if stage is RunStage.CANCELLING:
        del state.running[run]
        return [_ended(state, run, Cancelled(run), now_s), *start_queued(state)]
    if event.fault is Fault.JOB:
        del state.running[run]
        return [_ended(state, run, Failed(run, event.error, Fault.JOB), now_s), *start_queued(state)]
    state.running[run] = RunStage.SUSPECT
    if state.probing:
        state.unprobed[run] = event.error
        return []
    state.probed[run] = event.error
    state.probing = True
    return [ProbeEngine()]


def given_up(state: State, event: RunCancelled, now_s: float) -> list[ExecutorCommand]:
    """Report that a run was given up."""
    run = event.run
    if run not in state.running:
        return []
    del state.running[run]
    if state.stage is Stage.STOPPING:
        return []
    return [_ended(state, run, Cancelled(run), now_s), *start_queued(state)]


def engine_cleared(state: State, now_s: float) -> list[ExecutorCommand]:
    """Fail the runs that the engine failed although it lives; look again for those that came since."""
    commands: list[ExecutorCommand] = []
    for run, error in state.probed.items():
        del state.running[run]
        commands.append(_ended(state, run, Failed(run, error, Fault.ENGINE), now_s))
    state.probed = state.unprobed
    state.unprobed = {}
    state.probing = bool(state.probed)
    if state.probing:
        return [*commands, ProbeEngine()]
    return commands + start_queued(state)


def start_queued(state: State) -> list[ExecutorCommand]:
    """Start waiting runs while slots are free."""
    commands: list[ExecutorCommand] = []
    while state.queued and _may_start(state):
        run = next(iter(state.queued))
        assign = state.queued.pop(run)
        state.running[run] = RunStage.RUNNING
        commands.append(StartRun(assign=assign))
    return commands


def resend_unacked(state: State, now_s: float) -> list[ExecutorCommand]:
    """Send again what the supervisor has not acknowledged in time, oldest first."""
    stale: list[RunId] = []
    for run, sent in state.unacked.items():
        if sent.sent_at_s + state.policy.resend_after_s > now_s or len(stale) >= state.policy.resends_max:
            break
        stale.append(run)
    return [_sent_again(state, run, now_s) for run in stale]


def held(state: State) -> tuple[RunId, ...]:
    """All runs this executor is responsible for, as heartbeats list them."""
    return (*state.queued, *state.running, *state.unacked)


def _may_start(state: State) -> bool:
    # While the engine is under suspicion a further run would only die with it.
    return state.stage is Stage.READY and not state.probing and len(state.running) < state.policy.slots


def _ended(state: State, run: RunId, outcome: Outcome, now_s: float) -> Send:
    state.unacked[run] = Sent(outcome, now_s)
    return Send(message=outcome)


def _sent_again(state: State, run: RunId, now_s: float) -> Send:
    # Taken out and put back, so that the dict stays ordered by sending time.
    sent = state.unacked.pop(run)
    state.unacked[run] = Sent(sent.outcome, now_s)
    return Send(message=sent.outcome)
