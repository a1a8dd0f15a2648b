"""What a worker meets on the wire, with a real WebSocket client."""

from __future__ import annotations

import json
from typing import Any

import pytest
import websocket

from gpuward_devqueue.ledger import LinkNote
from gpuward_devqueue.misbehaviour import FOREVER, JUNK_TEXTS, Fault
from gpuward_devqueue.records import Status
from gpuward_devqueue.thread import DevQueueThread
from support.http_calls import call
from support.worker_client import WorkerClient

StartQueue = Any


def refused_status(queue: DevQueueThread, token: str | None = None) -> int:
    with pytest.raises(websocket.WebSocketBadStatusException) as refusal:
        WorkerClient(queue.ws_url, token=token)
    return int(refusal.value.status_code)


def closed_codes(queue: DevQueueThread) -> list[int]:
    return [entry.code for entry in queue.ledger().connections if entry.note is LinkNote.CLOSED]


# ---------------------------------------------------------------------------- the upgrade


def test_without_a_token_set_everybody_may_connect(queue: DevQueueThread) -> None:
    with WorkerClient(queue.ws_url, token="whatever") as worker:
        worker.barrier()


def test_a_missing_token_is_401_and_a_wrong_one_403(start_queue: StartQueue) -> None:
    queue = start_queue(token="tok-abc")
    assert refused_status(queue) == 401
    assert refused_status(queue, "tok-abd") == 403
    with WorkerClient(queue.ws_url, token="tok-abc") as worker:
        worker.barrier()
    assert queue.counters().refused == 2


def test_compression_is_never_agreed_on(queue: DevQueueThread) -> None:
    ws = websocket.create_connection(
        queue.ws_url + "/ws",
        timeout=5,
        header=["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"],
    )
    assert "sec-websocket-extensions" not in ws.getheaders()
    ws.close()


def test_a_plain_http_request_is_told_to_upgrade(queue: DevQueueThread) -> None:
    assert call("GET", queue.http_url + "/ws").status == 426


@pytest.mark.parametrize("status", [401, 403, 500])
def test_upgrades_are_refused_on_request(queue: DevQueueThread, status: int) -> None:
    queue.misbehave(Fault.REFUSE_UPGRADE, status=status, times=2)
    assert [refused_status(queue), refused_status(queue)] == [status, status]
    WorkerClient(queue.ws_url).close()


# ---------------------------------------------------------------------------- frames


def test_pings_are_answered_after_the_frames_before_them(queue: DevQueueThread) -> None:
    queue.submit({"task": "t"})
    with WorkerClient(queue.ws_url) as worker:
        worker.register()
        (job,) = worker.barrier()
        assert job["payload"] == {"task": "t"}


def test_a_withheld_pong_leaves_one_ping_unanswered(queue: DevQueueThread) -> None:
    queue.misbehave(Fault.WITHHOLD_PONG)
    with WorkerClient(queue.ws_url) as worker:
        worker.ws.ping(b"lost")
        worker.ws.ping(b"found")
        _, message = worker.ws.recv_data_frame(control_frame=True)
        assert message.data == b"found"


def test_the_queue_pings_by_itself_and_drops_a_worker_that_is_silent(start_queue: StartQueue) -> None:
    queue = start_queue(ping_interval_s=0.05)
    worker = WorkerClient.registered(queue.ws_url)
    queue.wait_workers(0)  # websocket-client answers pings only while it reads, and nobody does
    worker.abort()


def test_bad_frames_are_answered_and_the_connection_lives_on(queue: DevQueueThread) -> None:
    with WorkerClient.registered(queue.ws_url) as worker:
        for text in ("{not json", "[1]", '{"type":"mystery"}', '{"type":"job_result"}'):
            worker.send_text(text)
        worker.ws.send_binary(b"\x00\x01")
        messages = [worker.receive()["message"] for _ in range(5)]
        assert messages[:3] == ["Invalid JSON", "Expected a JSON object", "Unknown message type: mystery"]
        assert messages[3].startswith("job_result: ")
        assert "binary" in messages[4]
        assert queue.counters().violations == 5
        assert len(queue.workers()) == 1


def test_a_frame_of_exactly_the_limit_passes_and_one_more_byte_closes_with_1009(
    start_queue: StartQueue,
) -> None:
    queue = start_queue(max_frame_bytes=70_000)
    job_id = queue.submit({})
    worker = WorkerClient.registered(queue.ws_url)
    job = worker.receive_job()
    frame = {"type": "job_result", "job_id": job["job_id"], "result": "", "fence_token": job["fence_token"]}
    frame["result"] = "x" * (70_000 - len(json.dumps(frame)))
    worker.send(frame)
    assert queue.wait_terminal([job_id])[job_id].status is Status.COMPLETED
    worker.send_text(json.dumps(frame) + " ")
    assert worker.receive_close() == 1009


def test_an_unfinished_job_is_delivered_on_a_new_connection(queue: DevQueueThread) -> None:
    job_id = queue.submit({})
    first = WorkerClient.registered(queue.ws_url)
    job = first.receive_job()
    first.abort()
    queue.wait_workers(0)
    with WorkerClient.registered(queue.ws_url) as second:
        assert second.barrier() == []
        second.result(job, {"answer": 42})
        view = queue.wait_terminal([job_id])[job_id]
    assert (view.status, bytes(view.result or b"")) == (Status.COMPLETED, b'{"answer": 42}')


def test_an_expired_lease_moves_the_job_to_another_worker(start_queue: StartQueue) -> None:
    queue = start_queue(lease_s=0.05)
    job_id = queue.submit({})
    with WorkerClient.registered(queue.ws_url, "dead") as dead:
        first = dead.receive_job()
        dead.send({"type": "drain"})
        with WorkerClient.registered(queue.ws_url, "alive") as alive:
            second = alive.receive_job()
            assert second["fence_token"] > first["fence_token"]
            dead.result(first, "too late")
            dead.barrier()
            alive.result(second, "in time")
            view = queue.wait_terminal([job_id])[job_id]
    assert bytes(view.result or b"") == b'"in time"'
    assert (queue.counters().stale, queue.counters().answered) == (1, 1)


def test_progress_renews_the_lease_and_is_shown(queue: DevQueueThread) -> None:
    job_id = queue.submit({})
    with WorkerClient.registered(queue.ws_url) as worker:
        job = worker.receive_job()
        before_s = queue.ask(lambda broker: broker.job(job_id).lease_until_s)
        worker.progress(job, progress=0.25, status_message="step 1")
        worker.progress(job)
        worker.barrier()
        assert queue.ask(lambda broker: broker.job(job_id).lease_until_s) > before_s
    view = queue.job(job_id)
    assert (view.status, view.progress, view.status_message) == (Status.RUNNING, 0.25, "step 1")


# ---------------------------------------------------------------------------- misbehaviour on the wire


def test_close_mid_job_sends_the_job_and_then_the_code(queue: DevQueueThread) -> None:
    queue.misbehave(Fault.CLOSE_MID_JOB, code=1012)
    worker = WorkerClient.registered(queue.ws_url)
    queue.submit({"task": "t"})
    assert worker.receive_job()["payload"] == {"task": "t"}
    assert worker.receive_close() == 1012
    queue.wait_workers(0)


def test_abort_mid_job_ends_the_connection_without_a_close_frame(queue: DevQueueThread) -> None:
    queue.misbehave(Fault.ABORT_MID_JOB)
    worker = WorkerClient.registered(queue.ws_url)
    queue.submit({})
    worker.receive_job()
    assert worker.receive_close() is None
    queue.wait_workers(0)
    assert closed_codes(queue) == [1006]


def test_close_after_register_can_go_on_until_called_off(queue: DevQueueThread) -> None:
    queue.misbehave(Fault.CLOSE_AFTER_REGISTER, times=FOREVER)
    for _ in range(3):
        worker = WorkerClient(queue.ws_url)
        worker.register()
        assert worker.receive_close() == 1011
    queue.behave()
    with WorkerClient.registered(queue.ws_url):
        assert len(queue.workers()) == 1


def test_a_slow_frame_comes_in_fragments_and_whole(queue: DevQueueThread) -> None:
    queue.misbehave(Fault.SLOW_FRAMES, delay_s=0.05)
    with WorkerClient.registered(queue.ws_url) as worker:
        worker.ws.settimeout(5)
        queue.submit({"text": "ä" * 40_000})
        opcodes = []
        pieces = b""
        while True:
            frame = worker.ws.recv_frame()
            opcodes.append(frame.opcode)
            pieces += frame.data
            if frame.fin:
                break
        assert opcodes == [websocket.ABNF.OPCODE_TEXT] + [websocket.ABNF.OPCODE_CONT] * 7
        assert json.loads(pieces)["payload"] == {"text": "ä" * 40_000}


def test_an_oversized_job_is_inflated_once(queue: DevQueueThread) -> None:
    queue.misbehave(Fault.OVERSIZED_JOB, size_bytes=300_000)
    with WorkerClient.registered(queue.ws_url, capacity=2) as worker:
        queue.submit_many([{"n": 1}, {"n": 2}])
        giant, normal = worker.receive_job(), worker.receive_job()
        assert len(giant["payload"]["_padding"]) == 300_000
        assert normal["payload"] == {"n": 2}


def test_junk_reaches_the_wire_as_it_is(queue: DevQueueThread) -> None:
    queue.misbehave(Fault.JUNK_FRAMES)
    with WorkerClient.registered(queue.ws_url) as worker:
        queue.submit({})
        texts = [worker.ws.recv_data() for _ in JUNK_TEXTS]
        assert [data for _, data in texts] == list(JUNK_TEXTS)
        binaries = [worker.ws.recv_data()[0] for _ in range(2)]
        assert binaries == [websocket.ABNF.OPCODE_BINARY] * 2
        worker.receive_job()


def test_a_stalled_queue_takes_the_frames_later_and_all_of_them(queue: DevQueueThread) -> None:
    job_ids = queue.submit_many([{}, {}])
    with WorkerClient.registered(queue.ws_url, capacity=2) as worker:
        jobs = [worker.receive_job(), worker.receive_job()]
        queue.misbehave(Fault.STALL_READING, delay_s=0.05)
        for job in jobs:
            worker.result(job)
        queue.wait_terminal(job_ids)
    assert queue.counters().answered == 2


def test_a_revocation_reaches_the_worker(queue: DevQueueThread) -> None:
    with WorkerClient.registered(queue.ws_url) as worker:
        job_id = queue.submit({})
        worker.receive_job()
        queue.revoke(job_id, "changed my mind")
        assert worker.receive() == {"type": "job_revoked", "job_id": job_id, "reason": "changed my mind"}
