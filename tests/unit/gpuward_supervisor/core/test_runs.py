from __future__ import annotations

from typing import Any

import pytest

from gpuward_ipc.types import ExecutorName, Fault, Fence, Incarnation, JobId, RunId
from gpuward_supervisor.core.commands import (
    Command,
    ForgetBody,
    ReportProgress,
)
from gpuward_supervisor.core.events import (
    BodyId,
    ConnectionId,
    RunFailed,
    RunProgressed,
)
from support.core_stage import PERSISTED, SOURCE, Stage, ack, assign, error, result


def forget(body: int) -> ForgetBody:
    return ForgetBody(body=BodyId(body))


class TestRuns:
    def test_fault_of_the_job_is_reported_without_another_try(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        assert stage.fail("gpu0", 1, "Error code: 400", Fault.JOB) == [
            ack("gpu0", 1),
            forget(10),
            error(1, "a", "Error code: 400"),
        ]

    def test_fault_of_the_engine_is_tried_on_another_executor(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        assert stage.fail("gpu0", 1) == [ack("gpu0", 1), assign("gpu1", 2, "a", 10, attempt=2)]
        assert stage.said("job.retried") == [
            {"source": "q", "job_id": "a", "executor": "gpu0", "attempts": 1, "error": "boom"}
        ]

    def test_last_failure_is_reported_with_the_number_of_attempts(self) -> None:
        stage = Stage(attempts_max=2)
        stage.offer("a", 10)
        stage.fail("gpu0", 1)
        stage.fail("gpu1", 2)
        assert stage.fail("gpu0", 3, "out of memory") == [
            ack("gpu0", 3),
            forget(10),
            error(1, "a", "failed after 3 attempts; last: out of memory"),
        ]

    def test_without_further_attempts_one_failure_is_enough(self) -> None:
        stage = Stage(attempts_max=0)
        stage.offer("a", 10)
        assert error(1, "a", "failed after 1 attempt; last: boom") in stage.fail("gpu0", 1)

    def test_transient_job_is_not_tried_again_once_its_caller_has_gone(self) -> None:
        stage = Stage(transient_wait_s=120.0)
        stage.offer("a", 10)
        stage.now_s += 120.0
        assert error(1, "a", "failed after 1 attempt; last: boom") in stage.fail("gpu0", 1)

    def test_persisted_job_is_tried_again_however_old(self) -> None:
        stage = Stage(transient_wait_s=120.0)
        stage.offer("a", 10, mode=PERSISTED)
        stage.now_s += 10_000.0
        assert assign("gpu1", 2, "a", 10, attempt=2, transient=False) in stage.fail("gpu0", 1)

    def test_jobs_of_a_dead_executor_are_tried_elsewhere(self) -> None:
        stage = Stage()
        for job, body in (("a", 10), ("b", 20), ("c", 30)):
            stage.offer(job, body)  # a and c on gpu0, b on gpu1
        assert stage.exit("gpu0", signal=11)[0] == assign("gpu1", 4, "a", 10, attempt=2)
        # c waits: gpu1 is full, and gpu0 is dead
        assert stage.succeed("gpu1", 2, 21)[-1] == assign("gpu1", 5, "c", 30, attempt=2)
        assert [n["error"] for n in stage.said("job.retried")] == ["executor gpu0 died (signal 11)"] * 2

    def test_other_executors_do_not_notice_a_death(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        stage.offer("b", 20)
        stage.exit("gpu0")
        assert stage.succeed("gpu1", 2, 21) == [ack("gpu1", 2), forget(20), result(1, "b", 21)]

    @pytest.mark.parametrize(
        ("signal", "code", "text"),
        [(9, None, "signal 9"), (None, 0, "exit code 0"), (None, None, "status unknown")],
    )
    def test_death_is_told_by_its_status(self, signal: int | None, code: int | None, text: str) -> None:
        stage = Stage((1,), attempts_max=0)
        stage.offer("a", 10)
        expected = f"failed after 1 attempt; last: executor gpu0 died ({text})"
        assert error(1, "a", expected) in stage.exit("gpu0", signal=signal, code=code)

    def test_late_result_of_a_dead_incarnation_is_dropped(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        stage.exit("gpu0")
        stage.sweep("gpu0")
        stage.pass_time(1.0)
        stage.bring_up("gpu0")
        assert stage.succeed("gpu0", 1, 99, incarnation=1) == [forget(99)]
        assert stage.state.counters.stale_messages == 1

    def test_result_between_death_of_engine_and_exit_still_counts(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        stage.engine_dies("gpu0")
        assert stage.succeed("gpu0", 1, 11) == [ack("gpu0", 1), forget(10), result(1, "a", 11)]

    def test_repeated_outcome_is_acknowledged_and_dropped(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        stage.succeed("gpu0", 1, 11)
        assert stage.succeed("gpu0", 1, 12) == [ack("gpu0", 1), forget(12)]
        assert stage.fail("gpu0", 1) == [ack("gpu0", 1)]
        assert stage.state.counters.stale_messages == 2

    def test_outcome_from_an_unknown_executor_is_dropped(self) -> None:
        stage = Stage()
        failed = RunFailed(
            executor=ExecutorName("gpu9"),
            incarnation=Incarnation(1),
            run=RunId(1),
            error="boom",
            fault=Fault.JOB,
        )
        assert stage.feed(failed) == []

    def test_job_that_an_executor_gave_up_unasked_is_tried_again(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        assert stage.cancelled("gpu0", 1) == [ack("gpu0", 1), assign("gpu1", 2, "a", 10, attempt=2)]

    def test_one_line_is_noted_for_each_job(self) -> None:
        stage = Stage((1,), job_notes=True)
        stage.offer("a", 10)
        stage.offer("b", 20)
        stage.now_s += 2.0
        stage.succeed("gpu0", 1, 11)
        stage.now_s += 1.0
        stage.fail("gpu0", 2, "bad", Fault.JOB)
        common: dict[str, Any] = {"source": "q", "executor": "gpu0", "attempts": 1}
        assert stage.said("job.finished") == [
            {**common, "job_id": "a", "outcome": "succeeded", "queue_s": 0.0, "run_s": 2.0},
            {**common, "job_id": "b", "outcome": "failed", "queue_s": 2.0, "run_s": 1.0},
        ]


class TestProgress:
    def progressed(self, stage: Stage, progress: float, text: str = "", *, run: int = 1) -> list[Command]:
        return stage.feed(
            RunProgressed(**stage.at("gpu0"), run=RunId(run), progress=progress, status_message=text)
        )

    def test_progress_of_a_persisted_job_is_passed_on(self) -> None:
        stage = Stage()
        stage.offer("a", 10, fence=4, mode=PERSISTED)
        assert self.progressed(stage, 0.5, "step 1") == [
            ReportProgress(
                source=SOURCE,
                connection=ConnectionId(1),
                job_id=JobId("a"),
                fence=Fence(4),
                progress=0.5,
                status_message="step 1",
            )
        ]

    def test_progress_of_a_transient_job_is_dropped(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        assert self.progressed(stage, 0.5) == []

    def test_progress_of_an_unknown_run_is_stale(self) -> None:
        stage = Stage()
        assert self.progressed(stage, 0.5, run=9) == []
        assert stage.state.counters.stale_messages == 1
