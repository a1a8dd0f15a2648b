"""The decision: one event at one time changes the state and yields commands. The core's only way in.

``decide`` changes the state in place, which one thread owns; it does no I/O, reads no clock and draws its
jitter from a generator in the state: the same events at the same times give the same commands.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import Random
from typing import Any

from gpuward_supervisor.core import capacity, drain, executors, jobs, leases, reports, runs
from gpuward_supervisor.core.commands import SupervisorCommand
from gpuward_supervisor.core.dispatch import dispatch
from gpuward_supervisor.core.events import (
    EngineDied,
    Event,
    ExecutorBeat,
    ExecutorConnected,
    ExecutorExited,
    ExecutorReady,
    ExecutorRefused,
    ExecutorSpawned,
    ExecutorSpawnFailed,
    ExecutorSwept,
    JobOffered,
    JobRevoked,
    JournalFailed,
    JournalRestored,
    PayloadFetched,
    PayloadFetchFailed,
    ReportsDelivered,
    ResultRecovered,
    ResultUploaded,
    ResultUploadFailed,
    RunCancelled,
    RunFailed,
    RunProgressed,
    RunSucceeded,
    SourceClosed,
    SourceConnected,
    SourceDisconnected,
    SourceFailed,
    StopNow,
    StopRequested,
    SupervisorEvent,
    Ticked,
)
from gpuward_supervisor.core.policy import Policy
from gpuward_supervisor.core.state import Commands, Executor, NodePhase, Source, State


def initial_state(policy: Policy, seed: int) -> State:
    """Build the state of a supervisor that has just started.

    The shell feeds ``ResultRecovered`` for everything in the journal, then a first ``Ticked``, which spawns
    every planned executor.

    Args:
        policy: how to behave; names of executors and of sources must be unique.
        seed: of the jitter.
    """
    return State(
        policy=policy,
        rng=Random(seed),
        executors={plan.name: Executor(plan.name, plan.slots) for plan in policy.executors},
        sources={name: Source(name) for name in policy.sources},
    )


def decide(state: State, event: SupervisorEvent, now_s: float) -> list[SupervisorCommand]:
    """Take in one event.

    Args:
        state: what is known; changed in place.
        event: what has happened.
        now_s: when, in seconds of a clock that never goes back.

    Returns:
        What to do, in order. All ``Remember`` and ``Unremember`` must be durable before any other command of
        the same turn is carried out.
    """
    out: Commands = []
    _DECISIONS[type(event)](state, event, now_s, out)
    if state.queued:
        dispatch(state, now_s, out)
    if not state.ready or state.stop is not None:
        drain.advance(state, now_s, out)
    capacity.settle(state, now_s, out)
    if state.stop is not None:
        drain.conclude(state, now_s, out)
    return out


def next_deadline(state: State) -> float | None:
    """Time at which ``Ticked`` is due; None when only an event can change anything."""
    due_s = state.pulse_at_s
    for executor in state.executors.values():
        if executor.due_s < due_s:  # noqa: PLR1730  asked in every turn: min() costs four times as much
            due_s = executor.due_s
    for source in state.sources.values():
        due_s = min(due_s, source.capacity_due_s)
        if source.leases and (lease_due_s := leases.next_due(source)) is not None:
            due_s = min(due_s, lease_due_s)
        if source.unsent_transient and (expiry_s := reports.next_expiry(state, source)) is not None:
            due_s = min(due_s, expiry_s)
    if state.stop is not None and (stop_due_s := drain.next_due(state)) is not None:
        due_s = min(due_s, stop_due_s)
    return None if due_s == inf or state.phase is NodePhase.ENDED else due_s


def _ticked(state: State, _event: Ticked, now_s: float, out: Commands) -> None:
    executors.on_time(state, now_s, out)
    renew_s = state.policy.lease_renew_s
    for source in state.sources.values():
        leases.renew_due(source, now_s, renew_s, out)
        reports.drop_expired(state, source, now_s, out)


#: A table instead of a chain of comparisons: the same short time for every event. Its completeness is tested.
_DECISIONS: dict[type[Event], Callable[[State, Any, float, Commands], None]] = {
    SourceConnected: capacity.connected,
    SourceDisconnected: capacity.disconnected,
    JobOffered: jobs.offered,
    JobRevoked: jobs.revoked,
    PayloadFetched: jobs.payload_fetched,
    PayloadFetchFailed: jobs.payload_fetch_failed,
    ResultUploaded: reports.uploaded,
    ResultUploadFailed: reports.upload_failed,
    ReportsDelivered: reports.delivered,
    ExecutorSpawned: executors.spawned,
    ExecutorSpawnFailed: executors.spawn_failed,
    ExecutorConnected: executors.connected,
    ExecutorRefused: executors.refused,
    ExecutorReady: executors.ready,
    ExecutorBeat: executors.beat,
    RunSucceeded: runs.succeeded,
    RunFailed: runs.failed,
    RunCancelled: runs.cancelled,
    RunProgressed: runs.progressed,
    EngineDied: executors.engine_died,
    ExecutorExited: executors.exited,
    ExecutorSwept: executors.swept,
    ResultRecovered: reports.recovered,
    JournalFailed: drain.journal_failed,
    JournalRestored: drain.journal_restored,
    StopRequested: drain.stop_requested,
    StopNow: drain.stop_now,
    SourceClosed: drain.source_closed,
    SourceFailed: drain.source_failed,
    Ticked: _ticked,
}
