from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec.structs import replace

from gpuward_devqueue.presign import SignedRequest, Signer, Uploads, Use
from gpuward_devqueue.records import JobId

NOW_S = 1_000_000.5
JOB = JobId("job-1")


def request_of(url: str, use: Use = Use.RESULT) -> SignedRequest:
    parts = urlsplit(url)
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    job_id = JobId(parts.path.rsplit("/", 1)[1])
    return SignedRequest(use, job_id, int(query["fence"]), int(query["expires"]), query["token"])


@pytest.fixture
def signer() -> Signer:
    return Signer(60, b"key")


def test_a_url_is_good_for_its_job_fence_and_method_until_it_expires(signer: Signer) -> None:
    url = signer.url("http://q:1", Use.RESULT, JOB, 3, NOW_S)
    assert url.startswith("http://q:1/results/job-1?fence=3&")
    request = request_of(url)
    assert signer.objection(request, NOW_S) is None
    assert signer.objection(request, NOW_S + 60) is None
    assert "expired" in str(signer.objection(request, NOW_S + 62))


def test_nothing_that_is_signed_can_be_changed(signer: Signer) -> None:
    request = request_of(signer.url("http://q:1", Use.RESULT, JOB, 3, NOW_S))
    for forged in (
        replace(request, use=Use.PAYLOAD),
        replace(request, job_id=JobId("job-2")),
        replace(request, fence=4),
        replace(request, expires_s=request.expires_s + 1),
        replace(request, token="é"),
    ):
        assert "SignatureDoesNotMatch" in str(signer.objection(forged, NOW_S))


def test_two_queues_do_not_accept_each_others_urls() -> None:
    request = request_of(Signer(60).url("http://q:1", Use.RESULT, JOB, 3, NOW_S))
    assert "SignatureDoesNotMatch" in str(Signer(60).objection(request, NOW_S))


def test_an_upload_belongs_to_one_fence() -> None:
    uploads = Uploads()
    uploads.put(JOB, 2, b"two")
    assert uploads.get(JOB, 2) == b"two"
    assert uploads.get(JOB, 3) is None


def test_a_late_upload_of_an_older_fence_does_not_displace_a_newer_one() -> None:
    uploads = Uploads()
    uploads.put(JOB, 3, b"three")
    uploads.put(JOB, 2, b"two")
    assert uploads.get(JOB, 3) == b"three"
    uploads.put(JOB, 3, b"three again")
    assert uploads.get(JOB, 3) == b"three again"
    uploads.drop(JOB)
    assert uploads.get(JOB, 3) is None
