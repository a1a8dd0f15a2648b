"""The continuous batch, by the clock of the test."""

from __future__ import annotations

import pytest

from gpuward_executors.simulated.engine_core import Output, Scheduler


def test_without_a_time_per_token_an_answer_is_one_output() -> None:
    scheduler = Scheduler(slots=2, token_s=0.0, prefill_s=0.0)
    scheduler.add(1, 7, "stop")
    assert scheduler.step(10.0) == [(1, 7, "stop")]
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    assert scheduler.next_due_s() is None


def test_zero_cost_requests_beyond_the_slots_are_done_in_the_same_step() -> None:
    scheduler = Scheduler(slots=2, token_s=0.0, prefill_s=0.0)
    for number in range(5):
        scheduler.add(number, 1, "stop")
    assert [output[0] for output in scheduler.step(0.0)] == [0, 1, 2, 3, 4]


def test_requests_beyond_the_slots_wait_in_order() -> None:
    scheduler = Scheduler(slots=1, token_s=1.0, prefill_s=0.0)
    scheduler.add(1, 1, "stop")
    scheduler.add(2, 1, "length")
    assert scheduler.step(0.0) == []
    assert (scheduler.running, scheduler.waiting) == (1, 1)
    assert scheduler.step(1.0) == [(1, 1, "stop")]
    assert (scheduler.running, scheduler.waiting) == (1, 0)
    assert scheduler.step(2.0) == [(2, 1, "length")]


def test_tokens_come_one_by_one_on_a_common_grid() -> None:
    scheduler = Scheduler(slots=8, token_s=1.0, prefill_s=0.0)
    scheduler.add(1, 3, "stop")
    scheduler.step(0.0)
    scheduler.add(2, 2, "stop")
    scheduler.step(0.4)
    assert scheduler.next_due_s() == 1.0
    assert scheduler.step(1.0) == [(1, 1, ""), (2, 1, "")]
    assert scheduler.step(1.5) == []
    assert scheduler.step(2.0) == [(1, 1, ""), (2, 1, "stop")]
    assert scheduler.step(3.0) == [(1, 1, "stop")]


def test_a_late_step_catches_up() -> None:
    scheduler = Scheduler(slots=1, token_s=1.0, prefill_s=0.0)
    scheduler.add(1, 10, "stop")
    scheduler.step(0.0)
    assert scheduler.step(4.5) == [(1, 4, "")]
    assert scheduler.step(100.0) == [(1, 6, "stop")]


def test_prefill_delays_the_first_token() -> None:
    scheduler = Scheduler(slots=1, token_s=0.0, prefill_s=2.0)
    scheduler.add(1, 3, "stop")
    assert scheduler.step(1.0) == []
    assert scheduler.next_due_s() == 3.0
    assert scheduler.step(3.0) == [(1, 3, "stop")]


def test_a_request_without_tokens_is_done_after_its_prefill() -> None:
    scheduler = Scheduler(slots=1, token_s=5.0, prefill_s=0.0)
    scheduler.add(1, 0, "stop")
    assert scheduler.step(1.0) == [(1, 0, "stop")]


def test_abort_takes_a_request_from_the_slots_and_from_the_line() -> None:
    scheduler = Scheduler(slots=1, token_s=1.0, prefill_s=0.0)
    for number in (1, 2, 3):
        scheduler.add(number, 1, "stop")
    scheduler.step(0.0)
    scheduler.abort(1)
    scheduler.abort(2)
    scheduler.abort(99)
    assert scheduler.step(0.1) == []
    assert (scheduler.running, scheduler.waiting) == (1, 0)
    assert scheduler.step(2.0) == [(3, 1, "stop")]


def test_abort_all_ends_everything_with_abort() -> None:
    scheduler = Scheduler(slots=1, token_s=1.0, prefill_s=0.0)
    scheduler.add(1, 5, "stop")
    scheduler.add(2, 5, "stop")
    scheduler.step(0.0)
    expected: list[Output] = [(1, 0, "abort"), (2, 0, "abort")]
    assert scheduler.abort_all() == expected
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_a_slow_request_does_not_slow_its_neighbour() -> None:
    scheduler = Scheduler(slots=2, token_s=1.0, prefill_s=0.0)
    scheduler.add(1, 1, "stop", factor=5.0)
    scheduler.add(2, 1, "stop")
    scheduler.step(0.0)
    assert scheduler.step(1.0) == [(2, 1, "stop")]
    assert scheduler.step(5.0) == [(1, 1, "stop")]


@pytest.mark.parametrize(("token_s", "slow_s"), [(1.0, 4.0), (0.0, 0.08)])
def test_a_slow_engine_is_slow_for_all_later_requests(token_s: float, slow_s: float) -> None:
    scheduler = Scheduler(slots=1, token_s=token_s, prefill_s=0.0)
    scheduler.slow_down(4.0)
    scheduler.add(1, 1, "stop")
    assert scheduler.step(0.0) == []
    assert scheduler.next_due_s() == pytest.approx(slow_s)


def test_slowing_down_reaches_requests_that_run() -> None:
    scheduler = Scheduler(slots=1, token_s=1.0, prefill_s=0.0)
    scheduler.add(1, 3, "stop")
    scheduler.step(0.0)
    scheduler.slow_down(10.0)
    assert scheduler.step(1.0) == [(1, 1, "")]
    assert scheduler.next_due_s() == pytest.approx(11.0)
