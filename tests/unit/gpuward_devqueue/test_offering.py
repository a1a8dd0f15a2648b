from __future__ import annotations

import json
from typing import Any

import pytest

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.offering import is_json, job_frame, padded
from gpuward_devqueue.presign import Signer
from gpuward_devqueue.records import ConnectionId, Job, JobId, Mode, Offer

OFFER = Offer(ConnectionId(1), JobId("j"), 5, "cfg")


def frame_of(
    payload: bytes, mode: Mode = Mode.PERSISTED, pad_bytes: int = 0, **options: object
) -> dict[str, Any]:
    job = Job(id=JobId("j"), mode=mode, payload=payload, config_id=None, seq=1, created_at_s=0)
    text = job_frame(
        OFFER,
        job,
        config=DevQueueConfig(**options),  # type: ignore[arg-type]
        signer=Signer(60),
        base_url="http://q:1",
        wall_s=1000.0,
        pad_bytes=pad_bytes,
    )
    frame: dict[str, Any] = json.loads(text)
    return frame


def test_a_plain_offer_has_exactly_the_fields_of_the_protocol() -> None:
    assert frame_of(b'{"task":"t"}') == {
        "type": "job",
        "job_id": "j",
        "mode": "persisted",
        "config_id": "cfg",
        "payload": {"task": "t"},
        "fence_token": 5,
    }


def test_with_urls_on_every_persisted_job_may_upload_and_no_transient_one() -> None:
    assert frame_of(b"{}", presign=True)["result_upload_url"].startswith("http://q:1/results/j?fence=5&")
    assert "result_upload_url" not in frame_of(b"{}", Mode.TRANSIENT, presign=True)


def test_a_payload_goes_by_url_only_when_strictly_longer_than_the_threshold() -> None:
    payload = b'"' + b"x" * 98 + b'"'
    assert "payload_url" not in frame_of(payload, presign=True, payload_url_threshold_bytes=100)
    by_url = frame_of(payload, presign=True, payload_url_threshold_bytes=99)
    assert by_url["payload_url"].startswith("http://q:1/payloads/j?fence=5&")
    assert by_url["payload"] == {}
    assert "payload_url" not in frame_of(payload, payload_url_threshold_bytes=99)


def test_a_public_url_replaces_the_address_of_the_connection() -> None:
    frame = frame_of(b"{}", presign=True, public_url="https://store.test/q/")
    assert frame["result_upload_url"].startswith("https://store.test/q/results/j?")


def test_padding_keeps_the_payload_valid() -> None:
    assert json.loads(padded(b'{"a":1}', 10)) == {"a": 1, "_padding": "x" * 10}
    assert json.loads(padded(b"[1]", 10)) == "x" * 10
    assert len(frame_of(b"{}", pad_bytes=5000)["payload"]["_padding"]) == 5000


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b'{"a":1}', True),
        (b" 1 ", True),
        (b"", False),
        (b'{"a":', False),
        (b'"\xff"', False),
        (b"[" * 99_999, False),
    ],
)
def test_only_one_whole_json_text_in_utf8_counts_as_json(body: bytes, good: bool) -> None:
    assert is_json(body) is good
