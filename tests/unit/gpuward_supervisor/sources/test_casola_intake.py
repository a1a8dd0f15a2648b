from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gpuward_ipc.types import INLINE_BODY_MAX_BYTES
from gpuward_supervisor.bodies import Bodies, SpoolFile
from gpuward_supervisor.core.events import ConnectionId, JobOffered, JobRevoked, Mode, SupervisorEvent
from gpuward_supervisor.sources.base import CasolaSettings
from gpuward_supervisor.sources.casola_intake import WARN_INTERVAL_S, Intake
from gpuward_supervisor.sources.websocket_frames import Binary, Oversized
from support.clock import Clock
from support.scripted_queue import job_message

SETTINGS = CasolaSettings(url="ws://q", config_id="c", worker_id="w", inbound_max_bytes=4_000_000)
CONNECTION = ConnectionId(3)


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    return Bodies(tmp_path / "spool")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def intake(bodies: Bodies, clock: Clock) -> Intake:
    return Intake(SETTINGS, bodies, clock)


def take(intake: Intake, message: object) -> list[SupervisorEvent]:
    return intake.take(json.dumps(message).encode(), CONNECTION)


def offer(intake: Intake, message: object) -> JobOffered:
    (event,) = take(intake, message)
    assert isinstance(event, JobOffered)
    return event


def test_a_job_is_offered_with_its_payload_in_the_store(intake: Intake, bodies: Bodies) -> None:
    text = (
        b'{"type":"job","job_id":"a","mode":"persisted","config_id":"c",'
        b'"payload":{"task":"t", "x":1},"fence_token":7}'
    )
    (event,) = intake.take(text, CONNECTION)
    assert isinstance(event, JobOffered)
    assert event.body is not None
    assert bodies.get(event.body) == b'{"task":"t", "x":1}'
    assert event == JobOffered(
        source=SETTINGS.name,
        connection=CONNECTION,
        job_id=event.job_id,
        fence=event.fence,
        mode=Mode.PERSISTED,
        task="t",
        config_id="c",
        body=event.body,
        body_bytes=19,
    )
    assert (event.job_id, event.fence) == ("a", 7)
    assert intake.jobs_received == 1


def test_a_job_without_a_payload_has_an_empty_one(intake: Intake, bodies: Bodies) -> None:
    event = offer(intake, {"type": "job", "job_id": "a"})
    assert event.body is not None
    assert bodies.get(event.body) == b"{}"
    assert event.mode is Mode.TRANSIENT


def test_a_payload_behind_a_url_is_left_to_be_fetched(intake: Intake, bodies: Bodies) -> None:
    event = offer(
        intake, job_message(payload_url="http://p", result_upload_url="http://r", payload={"task": "t"})
    )
    assert (event.body, event.payload_url, event.result_upload_url, event.task) == (
        None,
        "http://p",
        "http://r",
        "t",
    )
    assert len(bodies) == 0


@pytest.mark.parametrize(("excess", "kind"), [(0, bytes), (1, SpoolFile)])
def test_a_payload_too_large_for_the_link_goes_to_a_file(
    intake: Intake, bodies: Bodies, excess: int, kind: type
) -> None:
    payload = {"task": "t", "x": ""}
    payload["x"] = "y" * (INLINE_BODY_MAX_BYTES + excess - len(json.dumps(payload)))
    event = offer(intake, job_message(payload=payload))
    assert event.body_bytes == INLINE_BODY_MAX_BYTES + excess
    assert event.task == "t"
    assert event.body is not None
    kept = bodies.get(event.body)
    assert isinstance(kept, kind)
    content = kept.path.read_bytes() if isinstance(kept, SpoolFile) else kept
    assert json.loads(content) == payload


def test_a_spool_that_cannot_be_written_refuses_the_job_alone(intake: Intake, bodies: Bodies) -> None:
    bodies.spool_dir.rmdir()
    event = offer(intake, job_message("big", payload="y" * (INLINE_BODY_MAX_BYTES + 1)))
    assert (event.body, event.job_id, event.fence) == (None, "big", 1)
    assert "no room for the payload" in event.refusal
    assert offer(intake, job_message("small")).refusal == ""
    assert (intake.jobs_received, intake.jobs_refused) == (2, 1)


def test_an_oversized_job_is_refused_under_its_own_name(intake: Intake) -> None:
    head = b'{"type":"job","job_id":"a","mode":"persisted","payload":{"x":"'
    (event,) = intake.take(Oversized(head, b'yyy"},"fence_token":9}', 5_000_000), CONNECTION)
    assert isinstance(event, JobOffered)
    assert (event.job_id, event.fence, event.mode, event.body) == ("a", 9, Mode.PERSISTED, None)
    assert "5000000 bytes" in event.refusal
    assert "limit of 4000000" in event.refusal


def test_an_oversized_message_that_names_no_job_is_ignored(intake: Intake) -> None:
    assert intake.take(Oversized(b'{"x":[', b"1,1]}", 5_000_000), CONNECTION) == []
    assert intake.frames_ignored == 1


def test_a_job_nested_too_deeply_is_refused(intake: Intake) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    (event,) = intake.take(b'{"type":"job","job_id":"a","payload":%b}' % deep, CONNECTION)
    assert isinstance(event, JobOffered)
    assert "nested too deeply" in event.refusal


def test_a_revocation(intake: Intake) -> None:
    (event,) = take(intake, {"type": "job_revoked", "job_id": "a", "reason": "x" * 1000})
    assert isinstance(event, JobRevoked)
    assert (event.job_id, event.reason) == ("a", "x" * 500)


@pytest.mark.parametrize("text", [b"junk", b"[]", b"5", b'{"type":"new"}', b'{"type":"job"}', b"\xff"])
def test_junk_is_counted_and_logged_and_nothing_else(intake: Intake, text: bytes) -> None:
    with capture_logs() as logs:
        assert intake.take(text, CONNECTION) == []
    assert intake.frames_ignored == 1
    assert [line["event"] for line in logs] == ["source.frame_ignored"]


def test_binary_is_junk(intake: Intake) -> None:
    assert intake.take(Binary(5), CONNECTION) == []
    assert intake.frames_ignored == 1


def test_a_flood_of_junk_is_no_flood_of_log_lines(intake: Intake, clock: Clock) -> None:
    with capture_logs() as logs:
        for _ in range(100):
            intake.take(b"junk", CONNECTION)
        clock.pass_s(WARN_INTERVAL_S)
        intake.take(b"junk", CONNECTION)
    assert [line["ignored"] for line in logs] == [1, 101]


def test_the_queues_complaints_are_logged(intake: Intake) -> None:
    with capture_logs() as logs:
        assert take(intake, {"type": "error", "message": "bad capacity"}) == []
    assert [(line["event"], line["message"]) for line in logs] == [("source.queue_error", "bad capacity")]
    assert intake.frames_ignored == 0


def test_the_echo_of_a_result_reference_means_nothing(intake: Intake) -> None:
    with capture_logs() as logs:
        assert take(intake, {"type": "job_result_ref", "job_id": "a"}) == []
    assert logs == []


@pytest.mark.parametrize("fields", [{"payload": {"task": "t" * 2_000_000}}, {"config_id": "c" * 2_000_000}])
def test_a_job_whose_names_would_burst_the_frame_of_an_assignment_is_refused(
    intake: Intake, bodies: Bodies, fields: dict[str, object]
) -> None:
    event = offer(intake, job_message(**fields))
    assert "has 2000000 characters" in event.refusal
    assert event.body is None
    assert len(bodies) == 0
