"""What a queue is told about capacity: registered slots, pause and resume.

The queue believes that ``capacity - open_jobs`` more jobs may come; ``free`` slots can really be taken. In
the steady state both are equal and nothing is said. They differ after a change of the executors, a reconnect
or a revocation. In this order:

1. Nothing runs: register what there is, more or less than before; that is exact at once.
2. More could come than fits, and nothing fits: pause.
3. More could come than fits, since a moment ago: pause, most such dips end by themselves.
4. More could come than fits, for longer: let jobs come as long as a slot is free; a few wait here.
5. Less could come than fits: register anew. A registration makes the queue forget the jobs that it has open
   here, so it is sent with the *free* slots, and the fewer jobs run at that moment, the longer it stays
   right. Hence the queue is paused for a moment first (a gathering), ever more rarely and ever longer while
   that does not help, because the jobs are long.
"""

from __future__ import annotations

from math import inf

from gpuward_supervisor.core import leases, reports
from gpuward_supervisor.core.commands import AnnounceDrain, Note, Pause, Register, Resume
from gpuward_supervisor.core.events import ConnectionId, SourceConnected, SourceDisconnected
from gpuward_supervisor.core.state import Commands, NodePhase, Source, State

#: Gatherings double in length and distance with each one that was in vain, up to these.
GATHER_MAX_S = 30.0
GATHER_EVERY_MAX_S = 300.0


def connected(state: State, event: SourceConnected, now_s: float, out: Commands) -> None:
    """A connection is open; it is registered as soon as there is something to offer or to report."""
    source = state.sources[event.source]
    if source.closed:
        return
    if source.connection is not None:
        end_connection(state, source, now_s, out)
    source.connection = event.connection
    out.append(_note("source.connected", source, level="debug"))  # the source says it for people


def disconnected(state: State, event: SourceDisconnected, now_s: float, out: Commands) -> None:
    """A connection is gone: nothing that was not read by the peer counts as reported."""
    source = state.sources[event.source]
    if source.connection != event.connection:
        return
    out.append(
        Note(
            level="debug",  # the source says it for people
            event="source.disconnected",
            facts={"source": source.name, "connection": event.connection, "reason": event.reason},
        )
    )
    end_connection(state, source, now_s, out)


def settle(state: State, now_s: float, out: Commands) -> None:
    """Say to every source what has to be said after the state has changed."""
    free = state.offerable_slots() - len(state.jobs) - state.orphans
    for source in state.sources.values():
        connection = source.connection
        if connection is None:
            continue
        if source.capacity - source.open_jobs == free and source.at_ease and source.registered:
            continue  # the steady state; this is asked after every event
        if not source.registered:
            if _wants_register(state, source):
                _register_first(state, source, connection, now_s, out)
            continue
        if state.phase is NodePhase.RUNNING:
            _adjust(state, source, connection, now_s, out)


def announce_drain(state: State, out: Commands) -> None:
    """Tell every registered source that no more jobs are taken."""
    for source in state.sources.values():
        if source.connection is not None and source.registered and not source.drain_announced:
            source.drain_announced = True
            source.capacity_due_s = inf
            out.append(AnnounceDrain(source=source.name, connection=source.connection))


def end_connection(state: State, source: Source, now_s: float, out: Commands) -> None:
    """Forget what a connection was told, and whatever was sent on it unread."""
    source.connection = None
    source.registered = False
    source.capacity = 0
    source.open_jobs = 0
    source.epoch += 1
    source.paused = False
    source.at_ease = False
    source.drain_announced = False
    source.dip_since_s = None
    source.gather_until_s = None
    source.capacity_due_s = inf
    reports.connection_lost(state, source, now_s, out)


def _wants_register(state: State, source: Source) -> bool:
    if state.phase is NodePhase.RUNNING and state.ready:
        return True
    # Results and lease renewals need a registered connection, even when no more jobs can be taken. But a node
    # that never had an engine says nothing yet.
    owing = bool(source.unsent or source.leases)
    return owing and (state.was_ready or state.phase is not NodePhase.RUNNING)


def _register_first(
    state: State, source: Source, connection: ConnectionId, now_s: float, out: Commands
) -> None:
    policy = state.policy
    slots = state.offerable_slots()
    free = slots - state.load()
    _register(source, connection, max(1, free), out)
    # Executors become ready one after the other: look again soon, and from then on at the longer interval.
    source.reregister_at_s = now_s + policy.capacity_settle_s
    source.gather_at_s = source.reregister_at_s
    source.gathers = 0
    source.slots_seen = slots
    if state.phase is NodePhase.RUNNING:
        _adjust(state, source, connection, now_s, out)
    else:
        source.drain_announced = True
        out.append(AnnounceDrain(source=source.name, connection=connection))
    reports.flush(state, source, out)
    leases.renew_due(source, now_s, policy.lease_renew_s, out)


def _register(source: Source, connection: ConnectionId, capacity: int, out: Commands) -> None:
    source.registered = True
    source.capacity = capacity
    source.open_jobs = 0
    source.epoch += 1
    source.paused = False
    source.at_ease = False
    source.dip_since_s = None
    source.gather_until_s = None
    source.capacity_due_s = inf
    out.append(Register(source=source.name, connection=connection, capacity=capacity))
    out.append(_note("source.registered", source))


def _adjust(state: State, source: Source, connection: ConnectionId, now_s: float, out: Commands) -> None:
    """The rules of this file for one registered source."""
    load = state.load()
    slots = state.offerable_slots()
    free = slots - load
    could_come = source.capacity - source.open_jobs
    source.capacity_due_s = inf
    source.at_ease = could_come == free
    pause = False
    if could_come == free:
        source.dip_since_s = None
        source.gather_until_s = None
    elif load == 0 and slots > 0 and now_s >= source.reregister_at_s:
        source.gathers = 0
        _reregister(state, source, connection, slots, now_s, out)
        return
    elif could_come > free:
        source.gather_until_s = None
        pause = _dips(state, source, could_come, free, now_s)
    else:
        source.dip_since_s = None
        if slots != source.slots_seen:
            source.slots_seen = slots
            source.gathers = 0
            source.gather_at_s = source.reregister_at_s
        pause = free > 0 and _gathers(state, source, load, now_s)
        if source.gather_until_s is not None and now_s >= source.gather_until_s:
            pause = False
            if free > source.capacity:
                _reregister(state, source, connection, free, now_s, out)
            _gathered_in_vain(state, source, now_s)
    if load == 0 and slots > 0 and could_come != free:
        source.capacity_due_s = min(source.capacity_due_s, source.reregister_at_s)
    if pause is not source.paused:
        _pause(source, connection, pause, out)


def _dips(state: State, source: Source, could_come: int, free: int, now_s: float) -> bool:
    """Whether to pause while more could come than fits."""
    if source.dip_since_s is None:
        source.dip_since_s = now_s
    settled_at_s = source.dip_since_s + state.policy.capacity_settle_s
    if now_s < settled_at_s:
        source.capacity_due_s = settled_at_s
    if could_come <= 0:
        return source.paused  # nothing comes anyway: not worth a word
    return free <= 0 or now_s < settled_at_s


def _gathers(state: State, source: Source, load: int, now_s: float) -> bool:
    """Whether to pause so that few jobs run when the capacity is registered anew."""
    if load == 0:  # nothing runs; only the time for the next registration has not come
        source.gather_until_s = None
        return False
    if source.gather_until_s is None:
        begin_at_s = max(source.gather_at_s, source.reregister_at_s)
        if now_s < begin_at_s:
            source.capacity_due_s = begin_at_s
            return False
        length_s = min(state.policy.capacity_settle_s * 2.0 ** min(source.gathers, 16), GATHER_MAX_S)
        source.gather_until_s = now_s + length_s
    source.capacity_due_s = source.gather_until_s
    return True


def _gathered_in_vain(state: State, source: Source, now_s: float) -> None:
    """Jobs were still running at the end of a gathering: wait longer before the next one, which is longer."""
    source.gather_until_s = None
    source.gathers += 1
    every_s = min(state.policy.reregister_min_s * 2.0 ** min(source.gathers, 16), GATHER_EVERY_MAX_S)
    source.gather_at_s = now_s + every_s
    source.capacity_due_s = source.gather_at_s


def _reregister(
    state: State, source: Source, connection: ConnectionId, capacity: int, now_s: float, out: Commands
) -> None:
    _register(source, connection, capacity, out)
    source.reregister_at_s = now_s + state.policy.reregister_min_s
    source.gather_at_s = source.reregister_at_s
    source.slots_seen = state.offerable_slots()


def _pause(source: Source, connection: ConnectionId, paused: bool, out: Commands) -> None:
    source.paused = paused
    if paused:
        out.append(Pause(source=source.name, connection=connection))
    else:
        out.append(Resume(source=source.name, connection=connection))
    out.append(_note("capacity.paused" if paused else "capacity.resumed", source))


def _note(event: str, source: Source, level: str = "info") -> Note:
    return Note(
        level=level,
        event=event,
        facts={
            "source": source.name,
            "connection": source.connection,
            "capacity": source.capacity,
            "open_jobs": source.open_jobs,
        },
    )
