from __future__ import annotations

import pytest

from gpuward_ipc.types import Fault, Fence, JobId
from gpuward_supervisor.core import drain, jobs
from gpuward_supervisor.core.commands import (
    AbandonTransfer,
    Command,
    FetchPayload,
    ForgetBody,
    Remember,
    Unremember,
)
from gpuward_supervisor.core.events import (
    BodyId,
    PayloadFetched,
    PayloadFetchFailed,
    StopRequested,
)
from support.core_stage import PERSISTED, SOURCE, Stage, ack, assign, cancel, error, result

URL = "https://store/payload"


def forget(body: int) -> ForgetBody:
    return ForgetBody(body=BodyId(body))


def remember(
    job: str, *, fence: int = 1, body: int | None = None, text: str = "", upload: str = ""
) -> Remember:
    return Remember(
        source=SOURCE,
        job_id=JobId(job),
        fence=Fence(fence),
        body=None if body is None else BodyId(body),
        error=text,
        result_upload_url=upload,
    )


def unremember(job: str) -> Unremember:
    return Unremember(source=SOURCE, job_id=JobId(job))


def fetch(job: str, *, fence: int = 1, url: str = URL) -> FetchPayload:
    return FetchPayload(source=SOURCE, job_id=JobId(job), fence=Fence(fence), url=url)


def abandon(job: str, *, fence: int = 1) -> AbandonTransfer:
    return AbandonTransfer(source=SOURCE, job_id=JobId(job), fence=Fence(fence))


def fetched(stage: Stage, job: str, body: int, *, fence: int = 1, task: str = "chat") -> list[Command]:
    return stage.feed(
        PayloadFetched(
            source=SOURCE, job_id=JobId(job), fence=Fence(fence), body=BodyId(body), body_bytes=5, task=task
        )
    )


class TestOffer:
    def test_transient_job_runs_and_is_reported_at_once(self) -> None:
        stage = Stage()
        assert stage.offer("a", 10) == [assign("gpu0", 1, "a", 10)]
        assert stage.succeed("gpu0", 1, 11) == [ack("gpu0", 1), forget(10), result(1, "a", 11)]
        assert stage.deliver(1) == [forget(11)]

    def test_persisted_result_is_durable_until_it_is_delivered(self) -> None:
        stage = Stage()
        assert stage.offer("a", 10, mode=PERSISTED) == [assign("gpu0", 1, "a", 10, transient=False)]
        assert stage.succeed("gpu0", 1, 11) == [
            ack("gpu0", 1),
            forget(10),
            remember("a", body=11),
            result(1, "a", 11),
        ]
        assert stage.deliver(1) == [unremember("a"), forget(11)]

    def test_fence_of_a_transient_job_is_echoed(self) -> None:
        stage = Stage()
        stage.offer("a", 10, fence=77)
        assert result(1, "a", 11, fence=77) in stage.succeed("gpu0", 1, 11)

    @pytest.mark.parametrize("fence", [3, 2])
    def test_same_or_older_dispatch_of_a_running_job_is_ignored(self, fence: int) -> None:
        stage = Stage()
        stage.offer("a", 10, fence=3)
        assert stage.offer("a", 20, fence=fence) == [forget(20)]
        assert stage.succeed("gpu0", 1, 11) == [ack("gpu0", 1), forget(10), result(1, "a", 11, fence=3)]

    def test_newer_dispatch_is_adopted_by_the_run_that_is_there(self) -> None:
        stage = Stage()
        stage.offer("a", 10, fence=1, mode=PERSISTED)
        assert stage.offer("a", 20, fence=2, mode=PERSISTED) == [forget(20)]
        assert stage.succeed("gpu0", 1, 11) == [
            ack("gpu0", 1),
            forget(10),
            remember("a", fence=2, body=11),
            result(1, "a", 11, fence=2),
        ]

    def test_newer_dispatch_of_a_waiting_job_keeps_its_place_in_line(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stage.offer("b", 20)
        stage.offer("c", 30)
        assert stage.offer("b", 21, fence=2) == [forget(21)]
        assert stage.succeed("gpu0", 1, 11)[-1] == assign("gpu0", 2, "b", 20)

    def test_newer_dispatch_brings_its_upload_url(self) -> None:
        stage = Stage(upload_threshold_bytes=5)
        stage.offer("a", 10, mode=PERSISTED, result_upload_url="https://old")
        stage.offer("a", 20, fence=2, mode=PERSISTED, result_upload_url="https://new")
        uploads = [c for c in stage.succeed("gpu0", 1, 11) if type(c).__name__ == "UploadResult"]
        assert [(u.fence, u.url) for u in uploads] == [(2, "https://new")]  # type: ignore[attr-defined]

    def test_newer_dispatch_without_an_upload_url_keeps_the_one_that_is_there(self) -> None:
        stage = Stage(upload_threshold_bytes=5)
        stage.offer("a", 10, mode=PERSISTED, result_upload_url="https://old")
        stage.offer("a", 20, fence=2, mode=PERSISTED)
        uploads = [c for c in stage.succeed("gpu0", 1, 11) if type(c).__name__ == "UploadResult"]
        assert [(u.fence, u.url) for u in uploads] == [(2, "https://old")]  # type: ignore[attr-defined]

    def test_newer_dispatch_of_an_owed_result_is_answered_without_running(self) -> None:
        stage = Stage()
        stage.offer("a", 10, mode=PERSISTED)
        stage.succeed("gpu0", 1, 11)
        assert stage.offer("a", 20, fence=2, mode=PERSISTED) == [
            forget(20),
            remember("a", fence=2, body=11),
            result(2, "a", 11, fence=2),
        ]
        assert stage.deliver(1) == []
        assert stage.deliver(2) == [unremember("a"), forget(11)]

    def test_newer_dispatch_of_an_owed_error_runs_the_job_anew(self) -> None:
        stage = Stage()
        stage.offer("a", 10, mode=PERSISTED)
        stage.fail("gpu0", 1, "bad request", Fault.JOB)
        assert stage.offer("a", 20, fence=2, mode=PERSISTED) == [
            unremember("a"),
            assign("gpu1", 2, "a", 20, transient=False),
        ]

    @pytest.mark.parametrize("fence", [3, 2])
    def test_same_or_older_dispatch_of_an_owed_report_is_ignored(self, fence: int) -> None:
        stage = Stage()
        stage.offer("a", 10, fence=3)
        stage.succeed("gpu0", 1, 11)
        assert stage.offer("a", 20, fence=fence) == [forget(20)]

    def test_refused_offer_is_answered_with_the_refusal(self) -> None:
        stage = Stage()
        assert stage.offer("a", None, mode=PERSISTED, refusal="payload too large: 70 MiB") == [
            remember("a", text="payload too large: 70 MiB"),
            error(1, "a", "payload too large: 70 MiB"),
        ]

    def test_offer_without_any_payload_is_answered_with_an_error(self) -> None:
        stage = Stage()
        assert stage.offer("a", None) == [error(1, "a", "job has neither a payload nor a payload URL")]

    def test_offer_to_a_draining_node_is_answered_not_dropped(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        stage.feed(StopRequested(reason="SIGTERM"))
        stage.pass_time(drain.CROSSING_S)
        assert stage.offer("b", 20) == [
            forget(20),
            error(1, "b", "worker is draining; job was not started"),
        ]

    def test_offer_that_crossed_the_drain_on_the_wire_is_run(self) -> None:
        stage = Stage()
        stage.feed(StopRequested(reason="SIGTERM"))
        assert stage.offer("b", 20) == [assign("gpu0", 1, "b", 20)]
        assert result(1, "b", 21) in stage.succeed("gpu0", 1, 21)

    def test_offer_that_crossed_the_drain_and_finds_no_slot_is_answered(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stage.feed(StopRequested(reason="SIGTERM"))
        assert stage.offer("b", 20) == [forget(20), error(1, "b", jobs.DRAINING_ERROR)]

    def test_newer_dispatch_of_a_running_job_is_adopted_while_draining(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        stage.feed(StopRequested(reason="SIGTERM"))
        assert stage.offer("a", 20, fence=2) == [forget(20)]
        assert result(1, "a", 11, fence=2) in stage.succeed("gpu0", 1, 11)

    def test_job_waits_while_no_executor_is_ready(self) -> None:
        stage = Stage((2,), warm=False)
        stage.tick()
        stage.connect()
        assert stage.offer("a", 10) == []
        assert assign("gpu0", 1, "a", 10) in stage.bring_up("gpu0")


class TestFetch:
    def test_payload_is_fetched_then_run(self) -> None:
        stage = Stage()
        assert stage.offer("a", None, payload_url=URL) == [fetch("a")]
        assert fetched(stage, "a", 10) == [assign("gpu0", 1, "a", 10)]

    def test_same_dispatch_of_a_job_that_is_fetched_is_ignored(self) -> None:
        stage = Stage()
        stage.offer("a", None, payload_url=URL)
        assert stage.offer("a", None, payload_url=URL) == []
        assert stage.state.counters.duplicates == 1

    def test_failed_fetch_fails_the_job_by_name(self) -> None:
        stage = Stage()
        stage.offer("a", None, payload_url=URL)
        failed = PayloadFetchFailed(source=SOURCE, job_id=JobId("a"), fence=Fence(1), error="HTTP 404")
        assert error(1, "a", "payload download failed: HTTP 404") in stage.feed(failed)

    def test_payload_of_an_older_dispatch_is_dropped(self) -> None:
        stage = Stage()
        stage.offer("a", None, payload_url=URL)
        assert stage.offer("a", None, fence=2, payload_url="https://new") == [
            abandon("a"),
            fetch("a", fence=2, url="https://new"),
        ]
        assert fetched(stage, "a", 10, fence=1) == [forget(10)]
        assert fetched(stage, "a", 20, fence=2) == [assign("gpu0", 1, "a", 20)]

    def test_failed_fetch_of_an_older_dispatch_means_nothing(self) -> None:
        stage = Stage()
        stage.offer("a", None, payload_url=URL)
        stage.offer("a", None, fence=2, payload_url=URL)
        failed = PayloadFetchFailed(source=SOURCE, job_id=JobId("a"), fence=Fence(1), error="HTTP 404")
        assert stage.feed(failed) == []

    def test_newer_dispatch_with_its_payload_needs_no_fetch(self) -> None:
        stage = Stage()
        stage.offer("a", None, payload_url=URL)
        assert stage.offer("a", 20, fence=2) == [abandon("a"), assign("gpu0", 1, "a", 20)]

    def test_newer_dispatch_that_cannot_be_run_ends_the_fetch(self) -> None:
        stage = Stage()
        stage.offer("a", None, payload_url=URL)
        assert stage.offer("a", None, fence=2, refusal="payload too large") == [
            abandon("a"),
            error(1, "a", "payload too large", fence=2),
        ]

    def test_payload_of_a_job_that_is_gone_is_dropped(self) -> None:
        stage = Stage()
        stage.offer("a", None, payload_url=URL)
        stage.revoke("a")
        assert fetched(stage, "a", 10) == [forget(10)]


class TestRevocation:
    def test_running_job_is_cancelled_and_its_slot_freed_by_the_answer_only(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stage.offer("b", 20)
        assert stage.revoke("a")[:2] == [cancel("gpu0", 1, "cancelled"), forget(10)]
        assert len(stage.executor().runs) == 1
        assert stage.cancelled("gpu0", 1)[:2] == [ack("gpu0", 1), assign("gpu0", 2, "b", 20)]

    def test_result_of_a_revoked_run_is_dropped(self) -> None:
        stage = Stage()
        stage.offer("a", 10, mode=PERSISTED)
        stage.revoke("a")
        assert stage.succeed("gpu0", 1, 11)[:2] == [ack("gpu0", 1), forget(11)]
        assert stage.state.owed == {}

    def test_failure_of_a_revoked_run_is_dropped(self) -> None:
        stage = Stage()
        stage.offer("a", 10, mode=PERSISTED)
        stage.revoke("a")
        assert stage.fail("gpu0", 1)[:1] == [ack("gpu0", 1)]
        assert stage.state.owed == {}

    def test_waiting_job_never_runs(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stage.offer("b", 20)
        assert stage.revoke("b") == [forget(20)]
        assert stage.succeed("gpu0", 1, 11) == [ack("gpu0", 1), forget(10), result(1, "a", 11)]

    def test_fetch_is_abandoned(self) -> None:
        stage = Stage()
        stage.offer("a", None, payload_url=URL)
        assert stage.revoke("a") == [abandon("a")]

    def test_upload_is_abandoned_and_the_journal_entry_goes(self) -> None:
        stage = Stage(upload_threshold_bytes=5)
        stage.offer("a", 10, mode=PERSISTED, result_upload_url="https://up")
        stage.succeed("gpu0", 1, 11)
        assert stage.revoke("a") == [abandon("a"), unremember("a"), forget(11)]

    def test_owed_report_is_dropped(self) -> None:
        stage = Stage()
        stage.offer("a", 10, mode=PERSISTED)
        stage.succeed("gpu0", 1, 11)
        assert stage.revoke("a") == [unremember("a"), forget(11)]
        assert stage.deliver(1) == []

    def test_unknown_job_means_nothing(self) -> None:
        assert Stage().revoke("a") == []

    def test_job_offered_again_beside_its_cancelled_run_is_a_new_job(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        stage.revoke("a")
        assert stage.offer("a", 20, fence=2)[:1] == [assign("gpu1", 2, "a", 20)]
        assert stage.succeed("gpu0", 1, 11)[:2] == [ack("gpu0", 1), forget(11)]
        assert result(1, "a", 21, fence=2) in stage.succeed("gpu1", 2, 21)

    def test_death_of_the_executor_ends_a_cancelled_run_in_silence(self) -> None:
        stage = Stage()
        stage.offer("a", 10)
        stage.revoke("a")
        stage.exit("gpu0")
        assert stage.state.orphans == 0
        assert stage.state.owed == {}


def test_a_queue_that_ignores_the_capacity_does_not_fill_the_memory() -> None:
    stage = Stage(slots=(2,))
    bound = jobs.open_jobs_max(stage.state)
    for number in range(bound):
        stage.offer(f"j{number}", 100 + number)
    assert len(stage.state.jobs) == bound
    assert stage.offer("over", 999) == [forget(999), error(1, "over", jobs.OVER_CAPACITY_ERROR)]
    assert len(stage.state.jobs) == bound
    # One done, one place free.
    stage.succeed("gpu0", 1, 500)
    stage.offer("next", 1000)
    assert len(stage.state.jobs) == bound
