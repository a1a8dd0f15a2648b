from __future__ import annotations

import pytest

from gpuward_executors.core.commands import (
    CancelRun,
    ForgetPayload,
    ForgetResults,
    ProbeEngine,
    Send,
    StartRun,
)
from gpuward_executors.core.events import (
    EngineAnswered,
    EngineHealth,
    EngineProbed,
    RunCancelled,
    RunFailed,
    Ticked,
)
from gpuward_executors.core.runs import held
from gpuward_executors.core.state import AckedRuns
from gpuward_ipc.messages import Ack, Cancel, Cancelled, Failed, Heartbeat, Stop, Succeeded
from gpuward_ipc.types import Fault, RunId
from support.executor_core import assign, feed, ready, sent, starting, won

ONE, TWO, THREE = RunId(1), RunId(2), RunId(3)


def lost(run: RunId, error: str = "engine gone", fault: Fault = Fault.ENGINE) -> RunFailed:
    return RunFailed(run=run, error=error, fault=fault)


def healthy() -> EngineProbed:
    return EngineProbed(health=EngineHealth.HEALTHY)


# ---------------------------------------------------------------- assigning


def test_a_run_starts_at_once_on_a_ready_executor() -> None:
    assert feed(ready(), assign(1)) == [StartRun(assign=assign(1))]


def test_runs_beyond_the_slots_wait_in_order_and_start_as_slots_become_free() -> None:
    state = ready(slots=1)
    assert feed(state, assign(1), assign(2), assign(3)) == [StartRun(assign=assign(1))]
    assert feed(state, won(1)) == [Send(message=Succeeded(ONE, 5)), StartRun(assign=assign(2))]
    assert feed(state, won(2)) == [Send(message=Succeeded(TWO, 5)), StartRun(assign=assign(3))]


def test_a_run_that_comes_before_the_engine_is_ready_waits_for_it() -> None:
    state = starting()
    assert feed(state, assign(1)) == []
    assert held(state) == (ONE,)
    assert feed(state, EngineAnswered())[-1:] == [StartRun(assign=assign(1))]


def test_a_second_copy_of_a_waiting_run_changes_nothing() -> None:
    state = starting()
    assert feed(state, assign(1), assign(1)) == []
    assert held(state) == (ONE,)


def test_a_second_copy_of_a_running_run_loses_its_payload() -> None:
    state = ready()
    feed(state, assign(1))
    assert feed(state, assign(1)) == [ForgetPayload(run=ONE)]


def test_a_second_copy_of_an_ended_run_repeats_the_outcome() -> None:
    state = ready()
    feed(state, assign(1), won(1))
    assert feed(state, assign(1)) == [ForgetPayload(run=ONE), Send(message=Succeeded(ONE, 5))]


def test_a_late_copy_of_an_acknowledged_run_does_not_run_again() -> None:
    state = ready()
    feed(state, assign(1), won(1), Ack((ONE,)))
    assert feed(state, assign(1)) == [ForgetPayload(run=ONE)]
    assert held(state) == ()


def test_a_run_older_than_all_that_are_remembered_is_failed_so_that_it_is_tried_anew() -> None:
    state = ready()
    state.acked = AckedRuns(kept_max=1)
    feed(state, assign(5), won(5), Ack((RunId(5),)), assign(6), won(6), Ack((RunId(6),)))
    [message] = sent(feed(state, assign(4)))
    assert isinstance(message, Failed)
    assert message.fault is Fault.ENGINE
    assert held(state) == (RunId(4),)


def test_a_stopping_executor_takes_no_run() -> None:
    state = ready()
    feed(state, Stop())
    assert feed(state, assign(1)) == [ForgetPayload(run=ONE)]


# ---------------------------------------------------------------- outcomes


def test_an_outcome_is_held_until_it_is_acknowledged() -> None:
    state = ready()
    feed(state, assign(1), won(1))
    assert held(state) == (ONE,)
    assert feed(state, Ack((ONE,))) == [ForgetResults(runs=(ONE,))]
    assert held(state) == ()


def test_a_result_in_a_file_belongs_to_the_supervisor_once_acknowledged() -> None:
    state = ready()
    assert feed(state, assign(1), won(1, 9, "/w/1.json"))[1:] == [
        Send(message=Succeeded(ONE, 9, "/w/1.json"))
    ]
    assert feed(state, Ack((ONE,))) == []


def test_an_acknowledgement_of_a_running_run_is_ignored() -> None:
    state = ready()
    feed(state, assign(1))
    assert feed(state, Ack((ONE, TWO))) == []
    assert held(state) == (ONE,)


def test_an_outcome_without_acknowledgement_is_sent_again_with_a_heartbeat() -> None:
    state = ready(resend_after_s=2.0)
    feed(state, assign(1), won(1), at_s=0.0)
    assert [type(m) for m in sent(feed(state, Ticked(), at_s=1.0))] == [Heartbeat]
    assert sent(feed(state, Ticked(), at_s=2.0))[1:] == [Succeeded(ONE, 5)]
    assert [type(m) for m in sent(feed(state, Ticked(), at_s=3.0))] == [Heartbeat]
    assert sent(feed(state, Ticked(), at_s=4.0))[1:] == [Succeeded(ONE, 5)]


def test_only_so_many_outcomes_are_sent_again_at_once_oldest_first() -> None:
    state = ready(slots=9, resends_max=2)
    feed(state, *(assign(run) for run in (1, 2, 3)), *(won(run) for run in (3, 1, 2)))
    assert sent(feed(state, Ticked(), at_s=5.0))[1:] == [Succeeded(THREE, 5), Succeeded(ONE, 5)]
    assert sent(feed(state, Ticked(), at_s=6.0))[1:] == [Succeeded(TWO, 5)]


def test_a_result_of_a_run_that_is_not_held_is_dropped() -> None:
    assert feed(ready(), won(1)) == [ForgetResults(runs=(ONE,))]


def test_a_failure_of_the_jobs_own_is_reported_at_once() -> None:
    state = ready(slots=1)
    feed(state, assign(1), assign(2))
    assert feed(state, lost(ONE, "bad", Fault.JOB)) == [
        Send(message=Failed(ONE, "bad", Fault.JOB)),
        StartRun(assign=assign(2)),
    ]


@pytest.mark.parametrize("event", [lost(ONE), RunCancelled(run=ONE)])
def test_an_end_of_a_run_that_is_not_held_is_ignored(event: RunFailed | RunCancelled) -> None:
    assert feed(ready(), event) == []


# ---------------------------------------------------------------- failures of the engine


def test_a_failure_of_the_engine_is_reported_only_when_the_engine_is_found_alive() -> None:
    state = ready()
    feed(state, assign(1))
    assert feed(state, lost(ONE)) == [ProbeEngine()]
    assert held(state) == (ONE,)
    assert feed(state, healthy()) == [Send(message=Failed(ONE, "engine gone", Fault.ENGINE))]


def test_an_engine_that_is_merely_slow_counts_as_alive() -> None:
    state = ready()
    feed(state, assign(1), lost(ONE))
    assert feed(state, EngineProbed(health=EngineHealth.SILENT)) == [
        Send(message=Failed(ONE, "engine gone", Fault.ENGINE))
    ]


def test_no_run_starts_while_the_engine_is_under_suspicion() -> None:
    state = ready()
    feed(state, assign(1), lost(ONE))
    assert feed(state, assign(2)) == []
    assert feed(state, healthy())[-1:] == [StartRun(assign=assign(2))]


def test_a_failure_during_a_probe_is_judged_by_the_next_probe() -> None:
    state = ready()
    feed(state, assign(1), assign(2), lost(ONE))
    assert feed(state, lost(TWO)) == []
    assert feed(state, healthy()) == [Send(message=Failed(ONE, "engine gone", Fault.ENGINE)), ProbeEngine()]
    assert feed(state, healthy()) == [Send(message=Failed(TWO, "engine gone", Fault.ENGINE))]


# ---------------------------------------------------------------- cancelling


def test_a_waiting_run_is_cancelled_without_the_engine() -> None:
    state = starting()
    feed(state, assign(1))
    assert feed(state, Cancel(ONE)) == [ForgetPayload(run=ONE), Send(message=Cancelled(ONE))]
    assert feed(state, EngineAnswered())[1:] == []


def test_a_running_run_is_cancelled_when_its_request_is_closed() -> None:
    state = ready(slots=1)
    feed(state, assign(1), assign(2))
    assert feed(state, Cancel(ONE), Cancel(ONE)) == [CancelRun(run=ONE)]
    assert feed(state, RunCancelled(run=ONE)) == [Send(message=Cancelled(ONE)), StartRun(assign=assign(2))]


def test_a_result_that_was_faster_than_the_cancel_is_sent() -> None:
    state = ready()
    feed(state, assign(1), Cancel(ONE))
    assert feed(state, won(1)) == [Send(message=Succeeded(ONE, 5))]


def test_a_failure_of_a_cancelled_run_needs_no_probe() -> None:
    state = ready()
    feed(state, assign(1), Cancel(ONE))
    assert feed(state, lost(ONE)) == [Send(message=Cancelled(ONE))]


def test_a_suspect_run_is_cancelled_at_once_and_not_failed_later() -> None:
    state = ready()
    feed(state, assign(1), lost(ONE))
    assert feed(state, Cancel(ONE)) == [Send(message=Cancelled(ONE))]
    assert feed(state, healthy()) == []


def test_a_cancel_of_an_ended_run_repeats_its_outcome() -> None:
    state = ready()
    feed(state, assign(1), won(1))
    assert feed(state, Cancel(ONE)) == [Send(message=Succeeded(ONE, 5))]


def test_a_cancel_of_an_acknowledged_run_is_answered_and_nothing_is_kept() -> None:
    state = ready()
    feed(state, assign(1), won(1), Ack((ONE,)))
    assert feed(state, Cancel(ONE)) == [Send(message=Cancelled(ONE))]
    assert held(state) == ()


def test_a_run_whose_cancel_came_first_never_starts() -> None:
    state = ready()
    assert feed(state, Cancel(ONE)) == [Send(message=Cancelled(ONE))]
    assert feed(state, assign(1)) == [ForgetPayload(run=ONE), Send(message=Cancelled(ONE))]
    feed(state, Ack((ONE,)))
    assert feed(state, assign(1)) == [ForgetPayload(run=ONE)]
