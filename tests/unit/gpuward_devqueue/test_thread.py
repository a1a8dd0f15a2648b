from __future__ import annotations

import threading

import msgspec
import pytest

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.errors import NotRunning, PortTaken, StillWaiting, UnknownJob
from gpuward_devqueue.ledger import Note
from gpuward_devqueue.misbehaviour import Fault, misbehaviour
from gpuward_devqueue.records import JobId, Mode, Status
from gpuward_devqueue.thread import DevQueueThread
from support.worker_client import WorkerClient


def test_jobs_go_in_and_results_come_out(queue: DevQueueThread) -> None:
    job_ids = queue.submit_many([{"n": n} for n in range(3)])
    with WorkerClient.registered(queue.ws_url, capacity=2) as worker:
        for _ in range(3):
            job = worker.receive_job()
            worker.result(job, job["payload"]["n"])
        views = queue.wait_terminal(job_ids)
    assert [bytes(views[job_id].result or b"") for job_id in job_ids] == [b"0", b"1", b"2"]
    ledger = queue.ledger()
    assert (ledger.counters.answered, ledger.counters.open, ledger.counters.duplicates) == (3, 0, 0)
    assert [entry.note for entry in queue.page(job_ids[0])] == [Note.SUBMITTED, Note.OFFERED, Note.COMPLETED]


def test_a_transient_job_waits_in_line_too(queue: DevQueueThread) -> None:
    job_id = queue.submit({}, "transient", config_id="big", job_id="mine")
    assert (job_id, queue.job(job_id).mode, queue.job(job_id).status) == (
        "mine",
        Mode.TRANSIENT,
        Status.PENDING,
    )


def test_raw_payloads_go_as_they_are(queue: DevQueueThread) -> None:
    first, second = queue.submit_many([b'{"a":  1}', msgspec.Raw(b'{"b":  2}')])
    assert bytes(queue.job(first).payload) == b'{"a":  1}'
    assert bytes(queue.job(second).payload) == b'{"b":  2}'


def test_workers_can_be_waited_for(queue: DevQueueThread) -> None:
    with WorkerClient(queue.ws_url) as worker:
        worker.register("w", capacity=3)
        (view,) = queue.wait_workers(1)
        assert (view.worker_id, view.capacity) == ("w", 3)
    assert queue.wait_workers(0) == []
    with pytest.raises(StillWaiting, match="1 registered workers"):
        queue.wait_workers(1, timeout_s=0.01)


def test_faults_can_be_scripted_and_called_off(queue: DevQueueThread) -> None:
    assert queue.misbehave("close-mid-job", code=1012) == misbehaviour(Fault.CLOSE_MID_JOB, code=1012)
    queue.behave(Fault.CLOSE_MID_JOB)
    assert queue.ask(lambda broker: broker.script.due()) == []


def test_errors_cross_the_thread(queue: DevQueueThread) -> None:
    with pytest.raises(UnknownJob):
        queue.job(JobId("nobody"))
    with pytest.raises(UnknownJob):
        queue.revoke(JobId("nobody"))


def test_stopping_ends_the_thread_and_later_calls_say_so() -> None:
    before = threading.active_count()
    queue = DevQueueThread().start()
    queue.stop()
    queue.stop()
    assert threading.active_count() == before
    with pytest.raises(NotRunning):
        queue.submit({})


def test_a_failed_start_leaves_no_thread_behind(queue: DevQueueThread) -> None:
    before = threading.active_count()
    port = int(queue.http_url.rsplit(":", 1)[1])
    with pytest.raises(PortTaken):
        DevQueueThread(DevQueueConfig(port=port)).start()
    assert threading.active_count() == before
