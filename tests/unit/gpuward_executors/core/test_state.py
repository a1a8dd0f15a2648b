from __future__ import annotations

from gpuward_executors.core.state import AckedRuns, Stage, initial_state, next_deadline
from gpuward_ipc.types import RunId
from support.executor_core import policy


def test_a_new_executor_waits_and_has_no_deadline() -> None:
    state = initial_state(policy(heartbeat_s=0.3))
    assert (state.stage, state.heartbeat_s, next_deadline(state)) == (Stage.WAITING, 0.3, None)


def test_the_next_deadline_is_the_earliest() -> None:
    state = initial_state(policy())
    state.beat_at_s, state.reprobe_at_s, state.leave_at_s = 3.0, 2.0, 9.0
    assert next_deadline(state) == 2.0


def test_acknowledged_runs_are_remembered_up_to_a_number() -> None:
    acked = AckedRuns(kept_max=2)
    for run in (4, 7, 5):
        acked.add(RunId(run))
    assert [run for run in (4, 5, 7) if RunId(run) in acked] == [5, 7]
    assert acked.floor == 4


def test_the_floor_never_falls() -> None:
    acked = AckedRuns(kept_max=1)
    for run in (9, 3, 1):
        acked.add(RunId(run))
    assert acked.floor == 9


def test_remembering_twice_is_remembering_once() -> None:
    acked = AckedRuns(kept_max=2)
    for run in (1, 1, 1, 2):
        acked.add(RunId(run))
    assert len(acked) == 2
    assert acked.floor == 0
