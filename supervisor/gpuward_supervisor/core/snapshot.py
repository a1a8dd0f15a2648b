"""The state as plain data for people and programs: what the status shows. Copies; keeps nothing alive."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite

import msgspec

from gpuward_supervisor.core.state import Executor, ExecutorPhase, JobPhase, Source, State


class ExecutorView(msgspec.Struct, frozen=True):
    """One executor. Times are seconds before or after the moment of the snapshot."""

    name: str
    phase: str
    incarnation: int
    pid: int
    slots: int
    planned_slots: int
    runs: int
    restarts: int
    #: What its engine says of itself.
    engine_phase: str
    engine_version: str
    #: Why it is dying or was given up.
    detail: str
    beat_age_s: float | None
    ready_for_s: float | None
    spawn_in_s: float | None


class SourceView(msgspec.Struct, frozen=True):
    """One source and what the other side believes."""

    name: str
    connected: bool
    connection: int | None
    registered: bool
    capacity: int
    open_jobs: int
    paused: bool
    drain_announced: bool
    closed: bool
    leases: int
    reports_owed: int
    reports_unsent: int


class Snapshot(msgspec.Struct, frozen=True):
    """The node at one moment."""

    phase: str
    stop_reason: str
    journal_ok: bool
    slots_alive: int
    slots_planned: int
    jobs_fetching: int
    jobs_queued: int
    jobs_running: int
    #: Runs that hold a slot though nobody wants their outcome.
    runs_unwanted: int
    reports_owed: int
    reports_uploading: int
    executors: tuple[ExecutorView, ...]
    sources: tuple[SourceView, ...]
    #: What has happened since the start, by name.
    counters: dict[str, int]


def take(state: State, now_s: float) -> Snapshot:
    """Copy what a status shows; its cost rises with the jobs that are under way, not with those done.

    Args:
        state: the state; left as it is.
        now_s: the time, by the clock that ``decide`` is given.
    """
    running = sum(len(executor.runs) for executor in state.executors.values()) - state.orphans
    return Snapshot(
        phase=state.phase.value,
        stop_reason="" if state.stop is None else state.stop.reason,
        journal_ok=state.journal_ok,
        slots_alive=state.alive_slots,
        slots_planned=sum(executor.planned_slots for executor in state.executors.values()),
        jobs_fetching=sum(job.phase is JobPhase.FETCHING for job in state.jobs.values()),
        jobs_queued=state.queued,
        jobs_running=running,
        runs_unwanted=state.orphans,
        reports_owed=len(state.owed),
        reports_uploading=state.uploading,
        executors=tuple(_executor(executor, now_s) for executor in state.executors.values()),
        sources=tuple(_source(source) for source in state.sources.values()),
        counters=asdict(state.counters),
    )


def _executor(executor: Executor, now_s: float) -> ExecutorView:
    ready = executor.phase is ExecutorPhase.READY and executor.ready_at_s is not None
    return ExecutorView(
        name=executor.name,
        phase=executor.phase.value,
        incarnation=executor.incarnation,
        pid=executor.pid,
        slots=executor.slots,
        planned_slots=executor.planned_slots,
        runs=len(executor.runs),
        restarts=executor.restarts,
        engine_phase=executor.engine_phase,
        engine_version=executor.engine_version,
        detail=executor.detail,
        beat_age_s=now_s - executor.last_beat_s if isfinite(executor.last_beat_s) else None,
        ready_for_s=now_s - executor.ready_at_s if ready and executor.ready_at_s is not None else None,
        spawn_in_s=executor.spawn_at_s - now_s if isfinite(executor.spawn_at_s) else None,
    )


def _source(source: Source) -> SourceView:
    return SourceView(
        name=source.name,
        connected=source.connection is not None,
        connection=source.connection,
        registered=source.registered,
        capacity=source.capacity,
        open_jobs=source.open_jobs,
        paused=source.paused,
        drain_announced=source.drain_announced,
        closed=source.closed,
        leases=len(source.leases),
        reports_owed=source.owed,
        reports_unsent=len(source.unsent),
    )
