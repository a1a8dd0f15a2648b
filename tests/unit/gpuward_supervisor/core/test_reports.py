"""The outbox, seen from outside: what is remembered, sent, sent again and forgotten."""

from __future__ import annotations

from gpuward_ipc.types import Fence, JobId, SourceName
from gpuward_supervisor.core.commands import (
    AbandonTransfer,
    Command,
    ForgetBody,
    Remember,
    ReportError,
    ReportResult,
    ReportResultRef,
    Unremember,
    UploadResult,
)
from gpuward_supervisor.core.events import (
    BodyId,
    ConnectionId,
    ReportSeq,
    ResultRecovered,
    ResultUploaded,
    ResultUploadFailed,
)
from support.core_stage import PERSISTED, SOURCE, TRANSIENT, Stage, error, result

UP = "https://store/result"
BIG = 101
HUGE = 1001


def forget(body: int) -> ForgetBody:
    return ForgetBody(body=BodyId(body))


def unremember(job: str) -> Unremember:
    return Unremember(source=SOURCE, job_id=JobId(job))


def remember(
    job: str, *, fence: int = 1, body: int | None = None, text: str = "", upload: str = UP
) -> Remember:
    return Remember(
        source=SOURCE,
        job_id=JobId(job),
        fence=Fence(fence),
        body=None if body is None else BodyId(body),
        error=text,
        result_upload_url=upload,
    )


def upload(job: str, body: int, *, fence: int = 1, url: str = UP) -> UploadResult:
    return UploadResult(source=SOURCE, job_id=JobId(job), fence=Fence(fence), url=url, body=BodyId(body))


def reference(seq: int, job: str, *, fence: int = 1, connection: int = 1) -> ReportResultRef:
    return ReportResultRef(
        source=SOURCE,
        connection=ConnectionId(connection),
        seq=ReportSeq(seq),
        job_id=JobId(job),
        fence=Fence(fence),
    )


def sized(**policy: object) -> Stage:
    return Stage((4,), upload_threshold_bytes=100, inline_result_max_bytes=1000, **policy)


def finish(stage: Stage, job: str, size: int, *, url: str = UP) -> list[Command]:
    """Offer a persisted job as the first one of the stage and let it end well with body 11."""
    stage.offer(job, 10, mode=PERSISTED, result_upload_url=url)
    return stage.succeed("gpu0", 1, 11, size=size)[2:]


def uploaded(stage: Stage, job: str, fence: int = 1) -> list[Command]:
    return stage.feed(ResultUploaded(source=SOURCE, job_id=JobId(job), fence=Fence(fence)))


def upload_failed(stage: Stage, job: str, fence: int = 1) -> list[Command]:
    return stage.feed(
        ResultUploadFailed(source=SOURCE, job_id=JobId(job), fence=Fence(fence), error="HTTP 403")
    )


def reports(commands: list[Command]) -> list[Command]:
    return [c for c in commands if isinstance(c, ReportResult | ReportError | ReportResultRef)]


class TestSize:
    def test_the_threshold_itself_goes_inline(self) -> None:
        assert finish(sized(), "a", 100) == [remember("a", body=11), result(1, "a", 11)]

    def test_one_byte_more_is_uploaded_first(self) -> None:
        stage = sized()
        assert finish(stage, "a", BIG) == [remember("a", body=11), upload("a", 11)]
        assert uploaded(stage, "a") == [reference(1, "a")]
        assert stage.deliver(1) == [unremember("a"), forget(11)]

    def test_without_an_upload_url_a_large_result_goes_inline(self) -> None:
        assert finish(sized(), "a", BIG, url="") == [remember("a", body=11, upload=""), result(1, "a", 11)]

    def test_a_transient_result_goes_inline_whatever_its_url(self) -> None:
        stage = sized()
        stage.offer("a", 10, result_upload_url=UP)
        assert reports(stage.succeed("gpu0", 1, 11, size=1000)) == [result(1, "a", 11)]

    def test_a_result_beyond_the_inline_limit_without_a_url_is_an_error(self) -> None:
        text = "result too large: 1001 bytes, at most 1000 bytes can be reported inline"
        assert finish(sized(), "a", HUGE, url="") == [
            forget(11),
            remember("a", text=text, upload=""),
            error(1, "a", text),
        ]

    def test_a_huge_result_with_a_url_is_uploaded(self) -> None:
        assert finish(sized(), "a", HUGE) == [remember("a", body=11), upload("a", 11)]


class TestFailedUpload:
    def test_goes_inline_when_it_is_small_enough(self) -> None:
        stage = sized()
        finish(stage, "a", 1000)
        assert upload_failed(stage, "a") == [result(1, "a", 11)]

    def test_is_reported_as_an_error_when_it_is_not(self) -> None:
        stage = sized()
        finish(stage, "a", HUGE)
        text = (
            "result too large: 1001 bytes, at most 1000 bytes can be reported inline, "
            "and its upload failed: HTTP 403"
        )
        assert upload_failed(stage, "a") == [forget(11), remember("a", text=text), error(1, "a", text)]

    def test_outcome_of_an_older_dispatch_means_nothing(self) -> None:
        stage = sized()
        finish(stage, "a", BIG)
        stage.offer("a", 20, fence=2, mode=PERSISTED, result_upload_url="https://new")
        assert uploaded(stage, "a", 1) == upload_failed(stage, "a", 1) == []
        assert uploaded(stage, "a", 2) == [reference(1, "a", fence=2)]

    def test_outcome_for_a_job_that_uploads_nothing_means_nothing(self) -> None:
        stage = sized()
        finish(stage, "a", 5)
        assert uploaded(stage, "a") == upload_failed(stage, "b") == []


class TestNewerDispatch:
    def test_a_running_upload_is_begun_anew_at_the_new_url(self) -> None:
        stage = sized()
        finish(stage, "a", BIG)
        assert stage.offer("a", 20, fence=2, mode=PERSISTED, result_upload_url="https://new") == [
            forget(20),
            AbandonTransfer(source=SOURCE, job_id=JobId("a"), fence=Fence(1)),
            remember("a", fence=2, body=11, upload="https://new"),
            upload("a", 11, fence=2, url="https://new"),
        ]

    def test_an_uploaded_result_is_uploaded_again(self) -> None:
        stage = sized()
        finish(stage, "a", BIG)
        uploaded(stage, "a")
        commands = stage.offer("a", 20, fence=2, mode=PERSISTED, result_upload_url="https://new")
        assert upload("a", 11, fence=2, url="https://new") in commands
        assert stage.deliver(1) == []
        assert uploaded(stage, "a", 2) == [reference(2, "a", fence=2)]

    def test_a_transient_result_becomes_durable_for_a_persisted_dispatch(self) -> None:
        stage = sized()
        stage.offer("a", 10)
        stage.succeed("gpu0", 1, 11)
        assert stage.offer("a", 20, fence=2, mode=PERSISTED) == [
            forget(20),
            remember("a", fence=2, body=11, upload=""),
            result(2, "a", 11, fence=2),
        ]


class TestConnection:
    def test_what_ends_while_disconnected_is_sent_after_the_next_register(self) -> None:
        stage = sized()
        stage.offer("a", 10, mode=PERSISTED)
        stage.disconnect()
        assert stage.succeed("gpu0", 1, 11)[2:] == [remember("a", body=11, upload="")]
        assert reports(stage.connect(2)) == [result(1, "a", 11, connection=2)]

    def test_what_was_not_delivered_is_sent_again_in_order_before_what_came_later(self) -> None:
        stage = sized()
        for n, job in enumerate("abc", start=1):
            stage.offer(job, n, mode=PERSISTED)
        stage.succeed("gpu0", 2, 12)
        stage.succeed("gpu0", 1, 11)
        stage.disconnect()
        stage.succeed("gpu0", 3, 13)
        assert reports(stage.connect(2)) == [
            result(3, "b", 12, connection=2),
            result(4, "a", 11, connection=2),
            result(5, "c", 13, connection=2),
        ]

    def test_what_was_delivered_is_not_sent_again(self) -> None:
        stage = sized()
        for n, job in enumerate("ab", start=1):
            stage.offer(job, n)
            stage.succeed("gpu0", n, 10 + n)
        assert stage.deliver(1) == [forget(11)]
        stage.disconnect()
        assert reports(stage.connect(2)) == [result(3, "b", 12, connection=2)]

    def test_delivery_told_of_an_older_connection_means_nothing(self) -> None:
        stage = sized()
        stage.offer("a", 10)
        stage.succeed("gpu0", 1, 11)
        stage.disconnect()
        stage.connect(2)
        assert stage.deliver(9, connection=1) == []
        assert stage.deliver(2, connection=2) == [forget(11)]

    def test_a_number_delivers_everything_before_it(self) -> None:
        stage = sized()
        for n, job in enumerate("abc", start=1):
            stage.offer(job, n)
            stage.succeed("gpu0", n, 10 + n)
        assert stage.deliver(2) == [forget(11), forget(12)]
        assert stage.deliver(3) == [forget(13)]

    def test_an_upload_goes_on_while_disconnected(self) -> None:
        stage = sized()
        finish(stage, "a", BIG)
        stage.disconnect()
        assert uploaded(stage, "a") == []
        assert reports(stage.connect(2)) == [reference(1, "a", connection=2)]


class TestPatience:
    def test_a_transient_report_is_dropped_a_while_after_its_caller_has_gone(self) -> None:
        stage = sized(transient_wait_s=120.0)
        stage.offer("a", 10)
        stage.disconnect()
        stage.succeed("gpu0", 1, 11)
        assert [c for c in stage.pass_time(179.9) if isinstance(c, ForgetBody)] == []
        assert [c for c in stage.pass_time(0.2) if isinstance(c, ForgetBody)] == [forget(11)]
        assert reports(stage.connect(2)) == []
        assert stage.said("report.dropped") == [
            {"source": "q", "job_id": "a", "reason": "its caller has gone"}
        ]

    def test_a_persisted_report_waits_for_ever(self) -> None:
        stage = sized()
        stage.offer("a", 10, mode=PERSISTED)
        stage.disconnect()
        stage.succeed("gpu0", 1, 11)
        stage.tick(10_000.0)
        assert reports(stage.connect(2)) == [result(1, "a", 11, connection=2)]

    def test_a_full_outbox_gives_up_the_oldest_transient_report(self) -> None:
        stage = sized(outbox_max=2)
        modes = {"a": PERSISTED, "b": TRANSIENT, "c": TRANSIENT, "d": PERSISTED}
        for n, (job, mode) in enumerate(modes.items(), start=1):
            stage.offer(job, n, mode=mode)
        stage.disconnect()
        dropped = [
            [c for c in stage.succeed("gpu0", n, 10 + n) if c in {forget(12), forget(13)}]
            for n in (1, 2, 3, 4)
        ]
        assert dropped == [[], [], [forget(12)], [forget(13)]]
        assert reports(stage.connect(2)) == [
            result(1, "a", 11, connection=2),
            result(2, "d", 14, connection=2),
        ]
        assert [n.level for n in stage.notes if n.event == "report.dropped"] == ["error", "error"]

    def test_a_persisted_report_is_never_given_up(self) -> None:
        stage = sized(outbox_max=1)
        for n, job in enumerate("abc", start=1):
            stage.offer(job, n, mode=PERSISTED)
        stage.disconnect()
        for n in (1, 2, 3):
            stage.succeed("gpu0", n, 10 + n)
        assert len(reports(stage.connect(2))) == 3

    def test_patience_of_reports_that_were_sent_in_vain_is_that_of_their_age(self) -> None:
        stage = sized(transient_wait_s=120.0)
        stage.offer("a", 10)
        stage.offer("b", 20)
        stage.succeed("gpu0", 1, 11)
        stage.pass_time(100.0)
        stage.disconnect()
        stage.succeed("gpu0", 2, 12)
        forgotten = [c for c in stage.pass_time(81.0) if isinstance(c, ForgetBody)]
        assert forgotten == [forget(11)]


class TestRecovery:
    def recover(self, stage: Stage, job: str, **more: object) -> list[Command]:
        fields: dict[str, object] = {
            "source": SOURCE,
            "fence": Fence(7),
            "body": BodyId(11),
            "body_bytes": 5,
            "error": "",
        }
        return stage.feed(ResultRecovered(job_id=JobId(job), **(fields | more)))  # type: ignore[arg-type]

    def test_a_recovered_result_is_sent_once_an_executor_is_ready(self) -> None:
        stage = Stage((2,), warm=False)
        assert self.recover(stage, "a") == []
        stage.tick()
        assert stage.connect() == []
        assert reports(stage.bring_up("gpu0")) == [result(1, "a", 11, fence=7)]
        assert stage.deliver(1) == [unremember("a"), forget(11)]

    def test_a_recovered_error_is_sent_too(self) -> None:
        stage = Stage((2,), warm=False)
        self.recover(stage, "a", body=None, body_bytes=0, error="boom")
        stage.tick()
        stage.connect()
        assert reports(stage.bring_up("gpu0")) == [error(1, "a", "boom", fence=7)]

    def test_a_recovered_large_result_is_uploaded_again(self) -> None:
        stage = sized(warm=False)
        assert self.recover(stage, "a", body_bytes=BIG, result_upload_url=UP) == [upload("a", 11, fence=7)]

    def test_a_recovered_result_answers_a_newer_dispatch_without_running(self) -> None:
        stage = Stage((2,), warm=False)
        self.recover(stage, "a")
        stage.tick()
        stage.connect()
        stage.bring_up("gpu0")
        assert reports(stage.offer("a", 20, fence=8, mode=PERSISTED)) == [result(2, "a", 11, fence=8)]

    def test_a_result_of_a_source_that_is_no_longer_configured_stays_in_the_journal(self) -> None:
        stage = Stage((2,), warm=False)
        assert self.recover(stage, "a", source=SourceName("old")) == [forget(11)]
        assert stage.said("report.not_owed") == [{"source": "old", "job_id": "a", "fence": 7}]
