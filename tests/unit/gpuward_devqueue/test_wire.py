from __future__ import annotations

import pytest
from msgspec import Raw

from gpuward_devqueue import wire
from gpuward_devqueue.wire import WireError


def test_every_worker_frame_of_the_protocol_is_read_as_it_is_sent_by_the_reference_worker() -> None:
    texts = {
        '{"type": "register", "worker_id": "tmpl-1", "config_id": "default", "capacity": 2}': wire.Register(
            "tmpl-1", "default", 2
        ),
        '{"type": "job_result_ref", "job_id": "plus1", "fence_token": 7}': wire.JobResultRef("plus1", 7),
        '{"type": "job_error", "job_id": "579b", "error": "boom", "fence_token": 4}': wire.JobError(
            "579b", "boom", 4
        ),
        '{"type": "job_progress", "job_id": "288e", "fence_token": 9, "status_message": "processing"}': (
            wire.JobProgress("288e", 9, status_message="processing")
        ),
        '{"type": "job_progress", "job_id": "697c", "fence_token": 3, "progress": 1.0, '
        '"status_message": "step 3"}': wire.JobProgress("697c", 3, 1.0, "step 3"),
        '{"type": "drain"}': wire.Drain(),
        '{"type": "pause"}': wire.Pause(),
        '{"type": "resume"}': wire.Resume(),
    }
    for text, frame in texts.items():
        received = wire.decode(text)
        assert isinstance(received.frame, type(frame))
        assert [getattr(received.frame, name) for name in frame.__struct_fields__] == [
            getattr(frame, name) for name in frame.__struct_fields__
        ]
        assert received.oddity == ""


def test_a_result_keeps_its_bytes_as_they_came() -> None:
    received = wire.decode(
        '{"type":"job_result","job_id":"j","result":{"b": [1.50,"\\u00e4"]},"fence_token":2}'
    )
    assert isinstance(received.frame, wire.JobResult)
    assert bytes(received.frame.result) == b'{"b": [1.50,"\\u00e4"]}'


def test_fields_beyond_the_protocol_are_tolerated_and_reported() -> None:
    received = wire.decode('{"type":"drain","why":"tired"}')
    assert isinstance(received.frame, wire.Drain)
    assert "why" in received.oddity


def test_null_instead_of_an_absent_key_is_reported() -> None:
    received = wire.decode('{"type":"job_progress","job_id":"j","fence_token":1,"progress":null}')
    assert "null" in received.oddity


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{not json", "Invalid JSON"),
        ("", "Invalid JSON"),
        ('{"a":' * 100_000, "Invalid JSON"),
        ("[1]", "Expected a JSON object"),
        ("42", "Expected a JSON object"),
        ("null", "Expected a JSON object"),
        ("{}", "Missing message type"),
        ('{"type":7}', "Missing message type"),
        ('{"type":"mystery"}', "Unknown message type: mystery"),
        ('{"type":"job_result","result":{},"fence_token":1}', "job_result: .*job_id"),
        ('{"type":"job_error","job_id":"j","error":"x","fence_token":"1"}', "job_error: .*fence_token"),
        ('{"type":"job_error","job_id":"j","error":{},"fence_token":1}', "job_error: .*error"),
        ('{"type":"register","worker_id":"w","config_id":"c","capacity":-1}', "register: capacity is -1"),
        ('{"type":"register","worker_id":"w","config_id":"c","capacity":null}', "register: .*capacity"),
    ],
)
def test_what_is_no_frame_is_refused_with_a_reason(text: str, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        wire.decode(text)


def test_frames_to_workers_are_compact_and_start_with_their_type() -> None:
    job = wire.JobFrame("j", "persisted", "cfg", Raw(b'{"task":"t"}'), 2)
    assert wire.encode(job) == (
        b'{"type":"job","job_id":"j","mode":"persisted","config_id":"cfg","payload":{"task":"t"},"fence_token":2}'
    )
    assert wire.encode(wire.JobRevoked("j", "no")) == b'{"type":"job_revoked","job_id":"j","reason":"no"}'
    assert wire.encode(wire.ResultRefEcho("j")) == b'{"type":"job_result_ref","job_id":"j"}'
    assert wire.encode(wire.ErrorFrame("Invalid JSON")) == b'{"type":"error","message":"Invalid JSON"}'


def test_urls_are_in_a_job_frame_only_when_given() -> None:
    job = wire.JobFrame(
        "j", "persisted", "cfg", Raw(b"{}"), 2, payload_url="http://p", result_upload_url="http://r"
    )
    assert wire.encode(job).endswith(b',"payload_url":"http://p","result_upload_url":"http://r"}')
