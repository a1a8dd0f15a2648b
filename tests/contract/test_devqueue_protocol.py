"""The development queue against the recorded protocol: verbatim frames, whole conversations.

Left of each exchange stands what the reference worker sends, byte for byte (spaced JSON); right of it what a
queue sends (compact JSON). Only ids and ports differ between runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.ledger import LinkNote
from gpuward_devqueue.records import Mode, Status
from gpuward_devqueue.thread import DevQueueThread
from support.http_calls import call
from support.worker_client import WorkerClient

REGISTER = '{"type": "register", "worker_id": "tmpl-1", "config_id": "default", "capacity": 2}'


@pytest.fixture
def queue() -> Iterator[DevQueueThread]:
    with structlog.testing.capture_logs(), DevQueueThread(DevQueueConfig(frames_kept_max=100)) as running:
        yield running


def next_text(worker: WorkerClient) -> str:
    opcode, data = worker.ws.recv_data()
    assert opcode == 1, "one JSON object per text frame"
    return bytes(data).decode()


def test_handshake_and_a_transient_and_a_persisted_job(queue: DevQueueThread) -> None:
    with WorkerClient(queue.ws_url, token="tok-abc") as worker:
        worker.send_text(REGISTER)
        queue.wait_workers(1)

        payload = b'{"task":"openai/chat-completion","messages":[{"role":"user","content":"hello"}]}'
        queue.submit(payload, Mode.TRANSIENT, job_id="c6a6766d")
        assert next_text(worker) == (
            '{"type":"job","job_id":"c6a6766d","mode":"transient","config_id":"default",'
            f'"payload":{payload.decode()},"fence_token":1}}'
        )
        worker.send_text(
            '{"type": "job_result", "job_id": "c6a6766d", "result": '
            '{"output": "hello from your-worker-name"}, "fence_token": 1}'
        )

        queue.submit(b'{"task":"custom/x","a":1}', job_id="21bb7789")
        assert next_text(worker) == (
            '{"type":"job","job_id":"21bb7789","mode":"persisted","config_id":"default",'
            '"payload":{"task":"custom/x","a":1},"fence_token":2}'
        )
        worker.send_text(
            '{"type": "job_result", "job_id": "21bb7789", "result": '
            '{"output": "hello from your-worker-name"}, "fence_token": 2}'
        )
        assert worker.barrier() == [], "nothing is acknowledged"
    assert queue.counters().answered == 2
    assert queue.counters().violations == 0


def test_progress_an_error_and_a_renewal(queue: DevQueueThread) -> None:
    with WorkerClient(queue.ws_url) as worker:
        worker.send_text(REGISTER)
        queue.wait_workers(1)
        queue.submit({"task": "t"}, job_id="697c2a85")
        next_text(worker)
        worker.send_text(
            '{"type": "job_progress", "job_id": "697c2a85", "fence_token": 1, '
            '"progress": 0.3333333333333333, "status_message": "step 1"}'
        )
        worker.send_text(
            '{"type": "job_progress", "job_id": "697c2a85", "fence_token": 1, "status_message": "processing"}'
        )
        worker.send_text(
            '{"type": "job_error", "job_id": "697c2a85", "error": '
            '"boom: CUDA out of memory", "fence_token": 1}'
        )
        assert worker.barrier() == []
    view = queue.job(queue.ask(lambda broker: broker.jobs()[0].id))
    assert (view.status, view.error) == (Status.FAILED, "boom: CUDA out of memory")
    assert (view.progress, view.status_message) == (1 / 3, "processing")
    assert queue.counters().progressed == 2


def test_a_drained_worker_delivers_and_leaves(queue: DevQueueThread) -> None:
    worker = WorkerClient(queue.ws_url)
    worker.send_text(REGISTER)
    queue.wait_workers(1)
    job_id = queue.submit({})
    job = worker.receive_job()
    worker.send_text('{"type": "drain"}')
    assert worker.barrier() == []
    queue.submit({})
    worker.send_text('{"type": "resume"}')
    assert worker.barrier() == [], "resume does not give a drained worker its slots back"
    worker.result(job)
    worker.close()
    queue.wait_workers(0)
    assert queue.job(job_id).status is Status.COMPLETED
    assert [entry.note for entry in queue.ledger().connections] == [
        LinkNote.CONNECTED,
        LinkNote.REGISTERED,
        LinkNote.DRAINED,
        LinkNote.RESUMED,
        LinkNote.CLOSED,
    ]


def test_pause_and_resume_send_no_reply_and_hold_the_line(queue: DevQueueThread) -> None:
    with WorkerClient(queue.ws_url) as worker:
        worker.send_text(REGISTER)
        worker.send_text('{"type": "pause"}')
        worker.barrier()
        chat = {"model": "default", "messages": [{"role": "user", "content": "hello"}]}
        assert call("POST", queue.http_url + "/v1/chat/completions", chat).status == 503
        job_id = queue.submit({})
        assert worker.barrier() == []
        worker.send_text('{"type": "resume"}')
        assert worker.receive_job()["job_id"] == job_id


def test_a_transient_answer_with_fence_zero_is_refused(queue: DevQueueThread) -> None:
    """The reference worker sends fence 0 for transient jobs; what production does with it is unknown."""
    with WorkerClient(queue.ws_url) as worker:
        worker.send_text(REGISTER)
        queue.submit({}, Mode.TRANSIENT)
        job = worker.receive_job()
        worker.result(job, fence=0)
        assert worker.barrier() == []
        worker.result(job)
        worker.barrier()
    counters = queue.counters()
    assert (counters.wrong_fence, counters.answered) == (1, 1)


def test_the_reference_worker_can_be_let_through() -> None:
    config = DevQueueConfig(accept_fence_zero=True)
    with (
        structlog.testing.capture_logs(),
        DevQueueThread(config) as queue,
        WorkerClient(queue.ws_url) as worker,
    ):
        worker.send_text(REGISTER)
        job_id = queue.submit({}, Mode.TRANSIENT)
        worker.result(worker.receive_job(), "hello", fence=0)
        assert queue.wait_terminal([job_id])[job_id].status is Status.COMPLETED


def test_two_sockets_of_one_name_are_two_workers(queue: DevQueueThread) -> None:
    old = WorkerClient.registered(queue.ws_url, "same")
    with WorkerClient.registered(queue.ws_url, "same") as new:
        queue.wait_workers(2)
        old.close()
        queue.wait_workers(1)
        job_id = queue.submit({})
        assert new.receive_job()["job_id"] == job_id


def test_what_workers_sent_can_be_read_back_verbatim(queue: DevQueueThread) -> None:
    with WorkerClient(queue.ws_url) as worker:
        worker.send_text(REGISTER)
        worker.send_text('{"type": "drain"}')
        worker.barrier()
    assert [frame.text for frame in queue.frames()] == [REGISTER, '{"type": "drain"}']


def test_jobs_are_shown_with_the_fields_of_the_test_server(queue: DevQueueThread) -> None:
    shown = call("POST", queue.http_url + "/jobs", {"payload": {"a": 1}}).json
    expected = {"id", "config_id", "status", "payload", "result", "error", "fence_token", "created_at"}
    assert expected <= shown.keys()
