from __future__ import annotations

from gpuward_ipc.types import Fence, JobId, RunId
from gpuward_supervisor.core.commands import Command, ReportProgress
from gpuward_supervisor.core.decide import next_deadline
from gpuward_supervisor.core.events import ConnectionId, ResultUploaded, RunProgressed, StopRequested
from support.core_stage import PERSISTED, SOURCE, START_S, Stage


def renewal(job: str, *, fence: int = 1, connection: int = 1) -> ReportProgress:
    return ReportProgress(
        source=SOURCE,
        connection=ConnectionId(connection),
        job_id=JobId(job),
        fence=Fence(fence),
        status_message="processing",
    )


def renewals(commands: list[Command]) -> list[Command]:
    return [c for c in commands if isinstance(c, ReportProgress)]


def progressed(stage: Stage, progress: float, text: str = "") -> list[Command]:
    return stage.feed(RunProgressed(**stage.at("gpu0"), run=RunId(1), progress=progress, status_message=text))


def test_a_persisted_job_is_renewed_at_every_interval() -> None:
    stage = Stage(lease_renew_s=20.0)
    stage.offer("a", 10, mode=PERSISTED)
    assert renewals(stage.pass_time(19.9)) == []
    assert renewals(stage.pass_time(0.2)) == [renewal("a")]
    assert renewals(stage.pass_time(40.0)) == [renewal("a"), renewal("a")]


def test_a_transient_job_has_no_lease() -> None:
    stage = Stage()
    stage.offer("a", 10)
    assert renewals(stage.pass_time(100.0)) == []


def test_a_waiting_job_is_renewed_too() -> None:
    stage = Stage((1,))
    stage.offer("a", 10)
    stage.offer("b", 20, mode=PERSISTED)
    assert renewals(stage.pass_time(20.0)) == [renewal("b")]


def test_a_job_whose_payload_is_fetched_is_renewed_too() -> None:
    stage = Stage()
    stage.offer("a", None, payload_url="https://store", mode=PERSISTED)
    assert renewals(stage.pass_time(20.0)) == [renewal("a")]


def test_jobs_are_renewed_one_by_one_as_they_fall_due() -> None:
    stage = Stage(lease_renew_s=20.0)
    stage.offer("a", 10, mode=PERSISTED)
    stage.now_s += 5.0
    stage.offer("b", 20, mode=PERSISTED)
    assert renewals(stage.tick(15.0)) == [renewal("a")]
    assert renewals(stage.tick(5.0)) == [renewal("b")]


def test_renewal_ends_with_the_report() -> None:
    stage = Stage()
    stage.offer("a", 10, mode=PERSISTED)
    stage.succeed("gpu0", 1, 11)
    assert renewals(stage.pass_time(100.0)) == []


def test_renewal_goes_on_during_the_upload_at_its_old_pace() -> None:
    stage = Stage(upload_threshold_bytes=5, lease_renew_s=20.0)
    stage.offer("a", 10, mode=PERSISTED, result_upload_url="https://up")
    stage.pass_time(15.0)
    stage.succeed("gpu0", 1, 11)
    assert renewals(stage.pass_time(5.0)) == [renewal("a")]
    stage.feed(ResultUploaded(source=SOURCE, job_id=JobId("a"), fence=Fence(1)))
    assert renewals(stage.pass_time(100.0)) == []


def test_renewal_ends_with_a_revocation() -> None:
    stage = Stage()
    stage.offer("a", 10, mode=PERSISTED)
    stage.revoke("a")
    assert renewals(stage.pass_time(100.0)) == []


def test_renewal_goes_on_while_draining() -> None:
    stage = Stage()
    stage.offer("a", 10, mode=PERSISTED)
    stage.feed(StopRequested(reason="SIGTERM", grace_s=60.0))
    assert renewals(stage.pass_time(20.0)) == [renewal("a")]


def test_nothing_is_renewed_while_disconnected_and_everything_overdue_after() -> None:
    stage = Stage(lease_renew_s=20.0)
    stage.offer("a", 10, mode=PERSISTED)
    stage.now_s += 10.0
    stage.offer("b", 20, mode=PERSISTED)
    stage.disconnect()
    assert renewals(stage.pass_time(15.0)) == []
    assert renewals(stage.connect(2)) == [renewal("a", connection=2)]
    assert renewals(stage.pass_time(5.0)) == [renewal("b", connection=2)]


def test_a_newer_dispatch_is_renewed_under_its_fence() -> None:
    stage = Stage(lease_renew_s=20.0)
    stage.offer("a", 10, mode=PERSISTED)
    stage.now_s += 15.0
    stage.offer("a", 20, fence=2, mode=PERSISTED)
    assert renewals(stage.pass_time(19.0)) == []
    assert renewals(stage.pass_time(1.0)) == [renewal("a", fence=2)]


def test_a_newer_dispatch_does_not_hold_up_the_renewal_of_others() -> None:
    stage = Stage((4,), lease_renew_s=20.0)
    stage.offer("a", 10, mode=PERSISTED)
    stage.now_s += 5.0
    stage.offer("b", 20, mode=PERSISTED)
    stage.now_s += 5.0
    stage.offer("a", 11, fence=2, mode=PERSISTED)
    assert renewals(stage.pass_time(15.1)) == [renewal("b")]
    assert renewals(stage.pass_time(5.0)) == [renewal("a", fence=2)]


def test_a_newer_dispatch_that_is_transient_ends_the_lease() -> None:
    stage = Stage()
    stage.offer("a", 10, mode=PERSISTED)
    stage.offer("a", 20, fence=2)
    assert renewals(stage.pass_time(100.0)) == []


def test_progress_counts_as_renewal() -> None:
    stage = Stage(lease_renew_s=20.0)
    stage.offer("a", 10, mode=PERSISTED)
    stage.offer("b", 20, mode=PERSISTED)
    stage.now_s += 10.0
    assert len(progressed(stage, 0.5)) == 1
    assert renewals(stage.tick(10.0)) == [renewal("b")]
    assert renewals(stage.tick(10.0)) == [renewal("a")]


def test_progress_is_passed_on_once_a_second_at_most() -> None:
    stage = Stage()
    stage.offer("a", 10, mode=PERSISTED)
    assert len(progressed(stage, 0.1)) == 1
    stage.now_s += 0.99
    assert progressed(stage, 0.2) == []
    stage.now_s += 0.01
    assert [c.progress for c in progressed(stage, 0.3)] == [0.3]  # type: ignore[attr-defined]


def test_unknown_progress_and_empty_text_are_left_out() -> None:
    stage = Stage()
    stage.offer("a", 10, mode=PERSISTED)
    assert progressed(stage, -1.0) == []
    (said,) = progressed(stage, -1.0, "loading")
    assert isinstance(said, ReportProgress)
    assert (said.progress, said.status_message) == (None, "loading")
    stage.now_s += 1.0
    (said,) = progressed(stage, 7.0)
    assert isinstance(said, ReportProgress)
    assert (said.progress, said.status_message) == (1.0, None)


def test_progress_is_dropped_while_disconnected() -> None:
    stage = Stage()
    stage.offer("a", 10, mode=PERSISTED)
    stage.disconnect()
    assert progressed(stage, 0.5) == []


def test_the_first_lease_sets_the_deadline() -> None:
    stage = Stage(lease_renew_s=0.25)
    stage.offer("a", 10, mode=PERSISTED)
    stage.now_s += 0.1
    stage.offer("b", 20, mode=PERSISTED)
    assert next_deadline(stage.state) == START_S + 0.25
    stage.disconnect()
    assert next_deadline(stage.state) == START_S + 1.0  # the pulse
