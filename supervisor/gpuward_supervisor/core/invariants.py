"""What must be true of the state after every event; the tests look after each step, the product never.

Each check raises with a sentence that says what is wrong and with whom. They read the state's records from
scratch, so that a wrong counter, a slot given twice or a lease left behind is seen in the step that made it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gpuward_ipc.types import RunId
from gpuward_supervisor.core.state import (
    GONE_PHASES,
    Executor,
    ExecutorPhase,
    JobPhase,
    NodePhase,
    OwedPhase,
    Source,
    State,
)

_WORKING_PHASES = frozenset({ExecutorPhase.READY, ExecutorPhase.DYING, ExecutorPhase.STOPPING})
_LINKED_PHASES = _WORKING_PHASES | {ExecutorPhase.STARTING}


class InvariantViolated(AssertionError):
    """A bug in the core: its records contradict each other."""


def check(state: State) -> None:
    """Look at everything.

    Raises:
        InvariantViolated: with all contradictions, one a line.
    """
    stories = [
        story
        for stories in (
            _node(state),
            _executors(state),
            _jobs(state),
            _owed(state),
            _sources(state),
            _bodies(state),
        )
        for story in stories
    ]
    if stories:
        raise InvariantViolated("\n".join(stories))


def _node(state: State) -> Iterator[str]:
    if (state.phase is NodePhase.RUNNING) != (state.stop is None):
        yield f"the node is {state.phase}, its stop is {state.stop}"
    if state.phase in {NodePhase.STOPPING, NodePhase.ENDED} and state.jobs:
        yield f"the node is {state.phase} and still has the jobs {sorted(state.jobs)}"
    if state.phase is NodePhase.ENDED:
        alive = [e.name for e in state.executors.values() if e.phase not in GONE_PHASES]
        open_sources = [s.name for s in state.sources.values() if not s.closed]
        if alive or open_sources:
            yield f"the node has ended, but executors {alive} and sources {open_sources} have not"


def _executors(state: State) -> Iterator[str]:
    ready = [e for e in state.executors.values() if e.phase is ExecutorPhase.READY]
    if state.ready != ready:
        yield f"ready executors are {[e.name for e in ready]}, listed are {[e.name for e in state.ready]}"
    if state.alive_slots != sum(e.slots for e in ready):
        yield f"{state.alive_slots} slots are counted alive, there are {sum(e.slots for e in ready)}"
    seen: dict[RunId, Executor] = {}
    orphans = 0
    for executor in state.executors.values():
        name = executor.name
        if executor.phase is ExecutorPhase.READY:
            if not 0 < executor.slots <= executor.planned_slots:
                yield f"{name} is ready with {executor.slots} slots, planned are {executor.planned_slots}"
            if len(executor.runs) > executor.slots:
                yield f"{name} has {len(executor.runs)} runs on {executor.slots} slots"
        elif executor.slots:
            yield f"{name} is {executor.phase} and still has {executor.slots} slots"
        if executor.connected and executor.phase not in _LINKED_PHASES:
            yield f"{name} is {executor.phase} and still addressed"
        if executor.runs and executor.phase not in _WORKING_PHASES:
            yield f"{name} is {executor.phase} and still has the runs {list(executor.runs)}"
        for run_id, run in executor.runs.items():
            if run_id in seen:
                yield f"run {run_id} is on {name} and on {seen[run_id].name}"
            seen[run_id] = executor
            if run.run != run_id:
                yield f"run {run.run} is kept as {run_id} on {name}"
            if run.job is None:
                orphans += 1
            elif (
                run.job.run is not run
                or run.job.executor != name
                or state.jobs.get(run.job.key) is not run.job
            ):
                yield f"run {run_id} on {name} is for {run.job.key}, which does not know it"
    if orphans != state.orphans:
        yield f"{state.orphans} unwanted runs are counted, there are {orphans}"


def _jobs(state: State) -> Iterator[str]:
    waiting = Counter(id(job) for job in [*state.queue, *state.retries] if job.phase is JobPhase.QUEUED)
    if sum(waiting.values()) != state.queued:
        yield f"{state.queued} jobs are counted waiting, there are {sum(waiting.values())}"
    for key, job in state.jobs.items():
        if job.key != key:
            yield f"{job.key} is kept as {key}"
        if key in state.owed:
            yield f"{key} is unfinished and its report is owed"
        if job.tries > state.policy.attempts_max + 1:
            yield f"{key} was tried {job.tries} times, at most {state.policy.attempts_max + 1} are allowed"
        if (job.phase is JobPhase.RUNNING) != (job.run is not None):
            yield f"{key} is {job.phase} with run {job.run}"
        if (job.phase is JobPhase.FETCHING) != (job.body is None):
            yield f"{key} is {job.phase} with body {job.body}"
        if waiting[id(job)] != (job.phase is JobPhase.QUEUED):
            yield f"{key} is {job.phase} and stands in line {waiting[id(job)]} times"
        if job.phase is JobPhase.DONE:
            yield f"{key} is done and not forgotten"
        if job.run is not None:
            executor = None if job.executor is None else state.executors.get(job.executor)
            if executor is None or executor.runs.get(job.run.run) is not job.run:
                yield f"{key} believes to run on {job.executor}, which does not know it"
    free = sum(max(e.slots - len(e.runs), 0) for e in state.ready)
    if free and any(job.phase is JobPhase.QUEUED for job in state.queue):
        yield f"{free} slots are free while jobs wait"


def _owed(state: State) -> Iterator[str]:
    counts: Counter[str] = Counter()
    uploading = 0
    for key, owed in state.owed.items():
        source = state.sources[key[0]]
        counts[source.name] += 1
        if owed.key != key:
            yield f"the report of {owed.key} is kept as {key}"
        if owed.body is None and not owed.error:
            yield f"the report of {key} says nothing"
        match owed.phase:
            case OwedPhase.UPLOADING:
                uploading += 1
                if not owed.persisted or owed.body is None or not owed.upload_url:
                    yield f"the report of {key} is being uploaded without body, lease or URL"
            case OwedPhase.UNSENT:
                if source.unsent.get(key[1]) is not owed:
                    yield f"the report of {key} is unsent and not in line"
                if source.registered:
                    yield f"the report of {key} is unsent on a registered connection"
                if (key[1] in source.unsent_transient) is owed.persisted:
                    yield f"the unsent report of {key} has the wrong patience"
            case OwedPhase.SENT:
                if (owed.seq, owed) not in source.sent:
                    yield f"the report of {key} was sent as {owed.seq}, which its connection does not know"
            case OwedPhase.DONE:
                yield f"the report of {key} is done and not forgotten"
    if uploading != state.uploading:
        yield f"{state.uploading} uploads are counted, there are {uploading}"
    for source in state.sources.values():
        if source.owed != counts[source.name]:
            yield f"{source.owed} reports are counted for {source.name}, there are {counts[source.name]}"
        strays = [j for j, o in source.unsent.items() if state.owed.get((source.name, j)) is not o]
        strays += [j for j in source.unsent_transient if j not in source.unsent]
        if strays:
            yield f"reports of {strays} stand in line at {source.name} and are not owed"


def _sources(state: State) -> Iterator[str]:
    for source in state.sources.values():
        if source.registered and source.connection is None:
            yield f"{source.name} is registered without a connection"
        if not source.registered and (
            source.sent or source.open_jobs or source.paused or source.drain_announced
        ):
            yield f"{source.name} is not registered and remembers what was said on the last connection"
        if source.registered and state.phase is not NodePhase.RUNNING and not source.drain_announced:
            yield f"{source.name} does not know that the node is {state.phase}"
        since = [j for j in state.jobs.values() if j.key[0] == source.name and j.epoch == source.epoch]
        if len(since) != source.open_jobs:
            yield f"{source.name} counts {source.open_jobs} open jobs, there are {len(since)}"
        numbers = [seq for seq, _ in source.sent]
        if numbers != sorted(set(numbers)):
            yield f"{source.name} was sent reports out of order: {numbers}"
        yield from _leases(state, source)


def _leases(state: State, source: Source) -> Iterator[str]:
    wanted = {j.key[1]: j.fence for j in state.jobs.values() if j.key[0] == source.name and j.persisted}
    wanted |= {
        o.key[1]: o.fence
        for o in state.owed.values()
        if o.key[0] == source.name and o.phase is OwedPhase.UPLOADING
    }
    held = {job_id: lease.fence for job_id, lease in source.leases.items()}
    if held != wanted:
        yield f"{source.name} has the leases {held}, wanted are {wanted}"
    dues = [lease.due_s for lease in source.leases.values()]
    if dues != sorted(dues):
        yield f"the leases of {source.name} fall due out of order: {dues}"


def _bodies(state: State) -> Iterator[str]:
    bodies = [job.body for job in state.jobs.values()] + [owed.body for owed in state.owed.values()]
    held = Counter(body for body in bodies if body is not None)
    shared = [body for body, count in held.items() if count > 1]
    if shared:
        yield f"bodies {shared} are held twice"
