from __future__ import annotations

from gpuward_ipc.types import ExecutorName, RunId
from gpuward_supervisor.core.dispatch import choose
from gpuward_supervisor.core.state import Executor, ExecutorPhase, Run
from support.core_stage import Stage, ack, assign, result


def executor(name: str, slots: int, runs: int, last_run: int = 0) -> Executor:
    held = {RunId(n): Run(RunId(n), None, 0.0, 0.0) for n in range(1, runs + 1)}
    return Executor(ExecutorName(name), slots, ExecutorPhase.READY, slots=slots, runs=held, last_run=last_run)


class TestChoose:
    def test_most_free_slots_win(self) -> None:
        a, b, c = executor("a", 4, 2), executor("b", 8, 5), executor("c", 2, 0)
        assert choose([a, b, c]) is b

    def test_among_equals_the_longest_unused_wins(self) -> None:
        a, b, c = (
            executor("a", 1, 0, last_run=9),
            executor("b", 1, 0, last_run=3),
            executor("c", 1, 0, last_run=5),
        )
        assert choose([a, b, c]) is b

    def test_nobody_free_means_nobody(self) -> None:
        assert choose([executor("a", 1, 1), executor("b", 2, 2)]) is None
        assert choose([]) is None

    def test_the_one_to_avoid_is_avoided_however_free(self) -> None:
        a, b = executor("a", 8, 0), executor("b", 8, 7)
        assert choose([a, b], avoid=a.name) is b

    def test_a_busy_other_one_is_waited_for(self) -> None:
        a, b = executor("a", 8, 0), executor("b", 1, 1)
        assert choose([a, b], avoid=a.name) is None

    def test_the_one_to_avoid_will_do_when_it_is_alone(self) -> None:
        a = executor("a", 1, 0)
        assert choose([a], avoid=a.name) is a
        assert choose([executor("a", 1, 1)], avoid=a.name) is None


def test_jobs_are_spread_evenly() -> None:
    stage = Stage((2, 2))
    places = [stage.offer(name, n)[0].executor for n, name in enumerate("abcd")]  # type: ignore[attr-defined]
    assert places == ["gpu0", "gpu1", "gpu0", "gpu1"]


def test_single_jobs_take_turns() -> None:
    stage = Stage((1, 1))
    for n, name in enumerate(["gpu0", "gpu1", "gpu0"], start=1):
        assert stage.offer(f"j{n}", n) == [assign(name, n, f"j{n}", n)]
        stage.succeed(name, n, 100 + n)


def test_jobs_wait_in_the_order_of_their_offers() -> None:
    stage = Stage((1,))
    stage.offer("a", 1)
    assert stage.offer("b", 2) + stage.offer("c", 3) == []
    assert stage.succeed("gpu0", 1, 11)[-1] == assign("gpu0", 2, "b", 2)
    assert stage.succeed("gpu0", 2, 12)[-1] == assign("gpu0", 3, "c", 3)


def test_a_retry_goes_before_jobs_that_wait() -> None:
    stage = Stage((1, 1))
    stage.offer("a", 1)
    stage.offer("b", 2)
    stage.offer("c", 3)
    # a avoids gpu0, so c gets that slot; then gpu1 takes a before d.
    assert stage.fail("gpu0", 1) == [ack("gpu0", 1), assign("gpu0", 3, "c", 3)]
    stage.offer("d", 4)
    assert stage.succeed("gpu1", 2, 12)[-1] == assign("gpu1", 4, "a", 1, attempt=2)


def test_a_retry_takes_the_same_executor_when_the_other_one_dies() -> None:
    stage = Stage((1, 1))
    stage.offer("a", 1)
    stage.offer("b", 2)
    stage.fail("gpu0", 1)
    assert stage.engine_dies("gpu1")[0] == assign("gpu0", 3, "a", 1, attempt=2)


def test_a_retry_on_the_only_executor_runs_there_again() -> None:
    stage = Stage((2,))
    stage.offer("a", 1)
    assert stage.fail("gpu0", 1) == [ack("gpu0", 1), assign("gpu0", 2, "a", 1, attempt=2)]


def test_a_retry_that_was_revoked_is_passed_over() -> None:
    stage = Stage((1, 1))
    stage.offer("a", 1)
    stage.offer("b", 2)
    stage.fail("gpu0", 1)
    stage.revoke("a")
    commands = stage.succeed("gpu1", 2, 12)
    assert commands[-1] == result(1, "b", 12)
