"""Each contradiction is made by hand in a sound state, and must be told by its story."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gpuward_ipc.types import Fence, JobId, RunId
from gpuward_supervisor.core import invariants
from gpuward_supervisor.core.events import BodyId, ReportSeq
from gpuward_supervisor.core.state import ExecutorPhase, JobPhase, Lease, NodePhase, OwedPhase, Run, State
from support.core_stage import PERSISTED, SOURCE, Stage


def busy() -> State:
    """Two jobs run, one waits, one is fetched; one report was sent and one is being uploaded."""
    stage = Stage((2, 1), upload_threshold_bytes=5)
    for n, job in enumerate("abcdefgh", start=1):
        stage.offer(job, n, mode=PERSISTED, result_upload_url="https://up" if job == "b" else "")
    stage.offer("z", None, payload_url="https://store")
    stage.succeed("gpu0", 1, 101, size=5)
    stage.succeed("gpu1", 2, 102, size=6)
    return stage.state


def running(state: State) -> Run:
    return next(run for e in state.executors.values() for run in e.runs.values())


def lend_slot_twice(state: State) -> None:
    gpu = state.ready[0]
    for n in (901, 902, 903):
        gpu.runs[RunId(n)] = Run(RunId(n), None, 0.0, 0.0)
    state.orphans += 3


def run_twice(state: State) -> None:
    run = running(state)
    for executor in state.executors.values():
        executor.runs[run.run] = run


def forget_job(state: State) -> None:
    run = running(state)
    assert run.job is not None
    del state.jobs[run.job.key]


def share_body(state: State) -> None:
    first, second = [job for job in state.jobs.values() if job.body is not None][:2]
    second.body = first.body


def stand_twice_in_line(state: State) -> None:
    job = next(job for job in state.queue if job.phase is JobPhase.QUEUED)
    state.queue.append(job)


def lose_sent(state: State) -> None:
    state.sources[SOURCE].sent.clear()


def owe_running_job(state: State) -> None:
    owed = next(iter(state.owed.values()))
    job = next(iter(state.jobs.values()))
    state.owed[job.key] = owed


def stray_lease(state: State) -> None:
    state.sources[SOURCE].leases[JobId("zz")] = Lease(Fence(1), 1e9)


def lease_out_of_order(state: State) -> None:
    next(iter(state.sources[SOURCE].leases.values())).due_s = 1e9


def free_slot_beside_waiting_job(state: State) -> None:
    state.ready[0].slots += 1
    state.ready[0].planned_slots += 1
    state.alive_slots += 1


def unsent_on_registered(state: State) -> None:
    owed = next(o for o in state.owed.values() if o.phase is OwedPhase.SENT)
    owed.phase = OwedPhase.UNSENT
    state.sources[SOURCE].unsent[owed.key[1]] = owed


def ready_unlisted(state: State) -> None:
    state.ready.pop()


def gone_with_runs(state: State) -> None:
    executor = next(e for e in state.executors.values() if e.runs)
    executor.phase = ExecutorPhase.BACKOFF


def numbers_fall(state: State) -> None:
    sent = state.sources[SOURCE].sent
    sent.append((ReportSeq(0), sent[0][1]))


def running_without_run(state: State) -> None:
    run = running(state)
    assert run.job is not None
    run.job.run = None


def set_attribute(name: str, value: object) -> Callable[[State], None]:
    def change(state: State) -> None:
        setattr(state, name, value)

    return change


def set_of_source(name: str, value: object) -> Callable[[State], None]:
    def change(state: State) -> None:
        setattr(state.sources[SOURCE], name, value)

    return change


def too_many_tries(state: State) -> None:
    next(iter(state.jobs.values())).tries = 99


def empty_report(state: State) -> None:
    next(iter(state.owed.values())).body = None


def done_and_kept(state: State) -> None:
    next(o for o in state.owed.values() if o.phase is OwedPhase.SENT).phase = OwedPhase.DONE


def body_while_fetching(state: State) -> None:
    next(j for j in state.jobs.values() if j.phase is JobPhase.FETCHING).body = BodyId(555)


def test_a_sound_state_passes() -> None:
    invariants.check(busy())


@pytest.mark.parametrize(
    ("break_it", "story"),
    [
        (lend_slot_twice, "runs on 2 slots"),
        (run_twice, "is on gpu1 and on gpu0"),
        (forget_job, "which does not know it"),
        (running_without_run, "with run None"),
        (share_body, "are held twice"),
        (body_while_fetching, "is fetching with body 555"),
        (stand_twice_in_line, "stands in line 2 times"),
        (too_many_tries, "was tried 99 times"),
        (free_slot_beside_waiting_job, "slots are free while jobs wait"),
        (ready_unlisted, "ready executors are"),
        (gone_with_runs, "is backoff and still has"),
        (gone_with_runs, "is backoff and still addressed"),
        (owe_running_job, "is unfinished and its report is owed"),
        (empty_report, "says nothing"),
        (done_and_kept, "is done and not forgotten"),
        (lose_sent, "which its connection does not know"),
        (unsent_on_registered, "is unsent on a registered connection"),
        (numbers_fall, "out of order"),
        (stray_lease, "has the leases"),
        (lease_out_of_order, "fall due out of order"),
        (set_attribute("orphans", 7), "7 unwanted runs are counted"),
        (set_attribute("queued", 77), "77 jobs are counted waiting"),
        (set_attribute("alive_slots", 99), "99 slots are counted alive"),
        (set_attribute("uploading", 5), "5 uploads are counted"),
        (set_attribute("phase", NodePhase.DRAINING), "its stop is None"),
        (set_of_source("open_jobs", 99), "counts 99 open jobs"),
        (set_of_source("owed", 99), "99 reports are counted"),
        (set_of_source("connection", None), "registered without a connection"),
        (set_of_source("registered", False), "remembers what was said"),
    ],
)
def test_a_contradiction_is_told(break_it: Callable[[State], None], story: str) -> None:
    state = busy()
    break_it(state)
    with pytest.raises(invariants.InvariantViolated, match=story):
        invariants.check(state)


def test_an_end_with_somebody_left_is_told() -> None:
    stage = Stage((1,))
    stage.offer("a", 10)
    stage.state.phase = NodePhase.ENDED
    with pytest.raises(invariants.InvariantViolated, match=r"ended, but executors \['gpu0'\]"):
        invariants.check(stage.state)
