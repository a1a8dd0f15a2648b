"""Presigned URLs, used as a worker uses them."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

import pytest

from gpuward_devqueue.ledger import Note
from gpuward_devqueue.misbehaviour import Fault
from gpuward_devqueue.records import Status
from gpuward_devqueue.thread import DevQueueThread
from support.http_calls import Answer, call
from support.worker_client import WorkerClient

StartQueue = Any
BIG = {"text": "x" * 500}


@pytest.fixture
def store(start_queue: StartQueue) -> DevQueueThread:
    queue: DevQueueThread = start_queue(presign=True, payload_url_threshold_bytes=300)
    return queue


def put(url: str, body: object, content_type: str = "application/json") -> Answer:
    return call("PUT", url, body, headers={"Content-Type": content_type})


def test_a_large_payload_is_fetched_from_its_url(store: DevQueueThread) -> None:
    with WorkerClient.registered(store.ws_url) as worker:
        job_id = store.submit(BIG)
        job = worker.receive_job()
        answer = call("GET", job["payload_url"])
    assert (answer.status, answer.json) == (200, BIG)
    assert answer.headers["Content-Type"] == "application/json"
    assert Note.PAYLOAD_FETCHED in [entry.note for entry in store.page(job_id)]


def test_urls_lead_to_the_address_the_worker_connected_to(store: DevQueueThread) -> None:
    with WorkerClient.registered(store.ws_url.replace("127.0.0.1", "localhost")) as worker:
        store.submit({})
        job = worker.receive_job()
    port = urlsplit(store.http_url).port
    assert job["result_upload_url"].startswith(f"http://localhost:{port}/results/")


def test_an_upload_becomes_the_result_when_it_is_referred_to(store: DevQueueThread) -> None:
    with WorkerClient.registered(store.ws_url) as worker:
        job_id = store.submit({})
        job = worker.receive_job()
        assert put(job["result_upload_url"], b'{"large": true}').status == 200
        assert store.job(job_id).status is Status.RUNNING
        worker.result_ref(job)
        assert worker.receive() == {"type": "job_result_ref", "job_id": job_id}
        view = store.wait_terminal([job_id])[job_id]
    assert (view.status, bytes(view.result or b"")) == (Status.COMPLETED, b'{"large": true}')
    assert [entry.note for entry in store.page(job_id)][-2:] == [Note.UPLOADED, Note.COMPLETED]


@pytest.mark.parametrize("content_type", ["text/plain", "application/json; charset=utf-8"])
def test_the_content_type_is_part_of_what_was_signed(store: DevQueueThread, content_type: str) -> None:
    with WorkerClient.registered(store.ws_url) as worker:
        store.submit({})
        answer = put(worker.receive_job()["result_upload_url"], b"{}", content_type)
    assert answer.status == 403
    assert b"SignatureDoesNotMatch" in answer.body


def test_a_forged_url_is_refused(store: DevQueueThread) -> None:
    with WorkerClient.registered(store.ws_url) as worker:
        store.submit(BIG)
        job = worker.receive_job()
    assert put(job["result_upload_url"].replace("fence=1", "fence=2"), b"{}").status == 403
    assert put(job["result_upload_url"].split("?")[0], b"{}").status == 403
    assert call("GET", job["payload_url"][:-1] + "x").status == 403
    assert call("GET", job["result_upload_url"]).status == 405
    assert store.counters().upload_refused == 1


def test_an_expired_url_is_refused(start_queue: StartQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = start_queue(presign=True, url_ttl_s=5)
    with WorkerClient.registered(queue.ws_url) as worker:
        queue.submit({})
        url = worker.receive_job()["result_upload_url"]
    monkeypatch.setattr("gpuward_devqueue.transfer.time.time", lambda: 4_000_000_000.0)
    answer = put(url, b"{}")
    assert answer.status == 403
    assert b"expired" in answer.body


def test_a_url_of_a_forgotten_job_leads_nowhere(start_queue: StartQueue) -> None:
    queue = start_queue(presign=True, jobs_kept_max=0)
    with WorkerClient.registered(queue.ws_url, capacity=2) as worker:
        queue.submit_many([{}, {}])
        jobs = [worker.receive_job(), worker.receive_job()]
        for job in jobs:
            worker.result(job)
        worker.barrier()
    assert put(jobs[0]["result_upload_url"], b"{}").status == 404


@pytest.mark.parametrize("body", [None, b'{"cut": '])
def test_a_reference_without_a_good_upload_is_answered_with_an_error(
    store: DevQueueThread, body: bytes | None
) -> None:
    with WorkerClient.registered(store.ws_url) as worker:
        job_id = store.submit({})
        job = worker.receive_job()
        if body is not None:
            put(job["result_upload_url"], body)
        worker.result_ref(job)
        refusal = worker.receive()
        assert (refusal["type"], "no uploaded JSON result" in refusal["message"]) == ("error", True)
        assert store.job(job_id).status is Status.RUNNING
        worker.result(job, "inline instead")
        assert store.wait_terminal([job_id])[job_id].status is Status.COMPLETED
    assert store.counters().upload_missing == 1


def test_an_upload_under_an_old_fence_is_not_taken_for_the_new_one(store: DevQueueThread) -> None:
    store.misbehave(Fault.DUPLICATE_HIGHER_FENCE)
    with WorkerClient.registered(store.ws_url) as worker:
        job_id = store.submit({})
        old, new = worker.receive_job(), worker.receive_job()
        put(old["result_upload_url"], b'"old"')
        worker.result_ref(new)
        assert worker.receive()["type"] == "error"
        assert store.job(job_id).status is Status.RUNNING


@pytest.mark.parametrize("status", [403, 503])
def test_uploads_fail_as_often_as_told(store: DevQueueThread, status: int) -> None:
    store.misbehave(Fault.REFUSE_PUT, status=status, times=2)
    with WorkerClient.registered(store.ws_url) as worker:
        store.submit({})
        url = worker.receive_job()["result_upload_url"]
        assert [put(url, b"{}").status for _ in range(3)] == [status, status, 200]


@pytest.mark.parametrize("status", [404, 503])
def test_downloads_fail_as_often_as_told(store: DevQueueThread, status: int) -> None:
    store.misbehave(Fault.REFUSE_PAYLOAD, status=status, times=2)
    with WorkerClient.registered(store.ws_url) as worker:
        store.submit(BIG)
        url = worker.receive_job()["payload_url"]
        assert [call("GET", url).status for _ in range(3)] == [status, status, 200]


def test_a_broken_payload_is_not_json(store: DevQueueThread) -> None:
    store.misbehave(Fault.BROKEN_PAYLOAD)
    with WorkerClient.registered(store.ws_url) as worker:
        store.submit(BIG)
        answer = call("GET", worker.receive_job()["payload_url"])
    assert answer.status == 200
    with pytest.raises(ValueError, match=r"Expecting|delimiter"):
        _ = answer.json


def test_a_slow_payload_keeps_its_reader_waiting(store: DevQueueThread) -> None:
    store.misbehave(Fault.SLOW_PAYLOAD, delay_s=30)
    with WorkerClient.registered(store.ws_url) as worker:
        store.submit(BIG)
        url = worker.receive_job()["payload_url"]
        with pytest.raises(TimeoutError):
            call("GET", url, timeout_s=0.05)
        assert call("GET", url).json == BIG


def test_an_endless_payload_goes_on_until_its_reader_leaves(store: DevQueueThread) -> None:
    store.misbehave(Fault.ENDLESS_PAYLOAD)
    with WorkerClient.registered(store.ws_url) as worker:
        store.submit(BIG)
        parts = urlsplit(worker.receive_job()["payload_url"])
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        connection.request("GET", f"{parts.path}?{parts.query}")
        response = connection.getresponse()
        assert len(response.read(2_000_000)) == 2_000_000
        response.close()
        connection.close()
        assert call("GET", store.http_url + "/health").status == 200
