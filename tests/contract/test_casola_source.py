"""The Casola source against a scripted queue: the protocol, and everything a queue may do wrong.

The core's part is played by the test: it registers, it answers. Cases that need the core's judgement
(duplicate fences, revocation of running work, drain over a reconnect) are tested with the whole node.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuward_ipc.types import Fence, JobId
from gpuward_supervisor.bodies import Bodies, SpoolFile
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core.events import (
    BodyId,
    ConnectionId,
    JobOffered,
    JobRevoked,
    Mode,
    PayloadFetched,
    PayloadFetchFailed,
    ReportsDelivered,
    ReportSeq,
    ResultUploaded,
    ResultUploadFailed,
    SourceConnected,
    SourceDisconnected,
)
from gpuward_supervisor.sources.base import CasolaSettings, Source, TransferSettings
from gpuward_supervisor.sources.registry import build_source
from support.event_inbox import EventInbox
from support.scripted_queue import BINARY, TEXT, TLS_FILE, QueueConnection, ScriptedQueue, frame, job_message
from support.scripted_store import Answer, ScriptedStore

PATIENCE_S = 20
INBOUND_MAX_BYTES = 3_000_000


class Worker:
    """A source, and just enough of a core to answer with."""

    def __init__(self, url: str, folder: Path) -> None:
        self.inbox = EventInbox()
        self.bodies = Bodies(folder)
        settings = CasolaSettings(
            url=url,
            config_id="default",
            worker_id="node-1",
            inbound_max_bytes=INBOUND_MAX_BYTES,
            backoff_first_s=0.001,
            backoff_max_s=0.005,
            barrier_interval_s=0.001,
            transfers=TransferSettings(backoff_first_s=0.001, get_timeout_s=PATIENCE_S),
        )
        self.source: Source = build_source(settings, self.bodies, self.inbox.post, self.inbox.post_all)
        self._name = settings.name
        self._seq = 0

    def register(self, queue: ScriptedQueue) -> QueueConnection:
        """Wait for the next connection and register on it."""
        connection = queue.accept()
        self.number = self.inbox.next(SourceConnected).connection
        self.source.send(do.Register(source=self._name, connection=self.number, capacity=4))
        assert connection.next() == {
            "type": "register",
            "worker_id": "node-1",
            "config_id": "default",
            "capacity": 4,
        }
        return connection

    def offer(self, connection: QueueConnection, message: dict[str, Any]) -> JobOffered:
        connection.send(message)
        return self.inbox.next(JobOffered)

    def report(self, job: JobOffered, body: bytes) -> ReportSeq:
        return self.report_body(job, self.bodies.put(body))

    def report_body(self, job: JobOffered, body: BodyId) -> ReportSeq:
        self._seq += 1
        seq = ReportSeq(self._seq)
        self.source.send(
            do.ReportResult(
                source=self._name,
                connection=self.number,
                seq=seq,
                job_id=job.job_id,
                fence=job.fence,
                body=body,
            )
        )
        return seq

    def report_error(self, job: JobOffered, error: str) -> None:
        self._seq += 1
        self.source.send(
            do.ReportError(
                source=self._name,
                connection=self.number,
                seq=ReportSeq(self._seq),
                job_id=job.job_id,
                fence=job.fence,
                error=error,
            )
        )

    def fetch(self, job: JobOffered) -> None:
        self.source.send(
            do.FetchPayload(source=self._name, job_id=job.job_id, fence=job.fence, url=job.payload_url)
        )

    def upload(self, job: JobOffered, body: bytes) -> None:
        self.source.send(
            do.UploadResult(
                source=self._name,
                job_id=job.job_id,
                fence=job.fence,
                url=job.result_upload_url,
                body=self.bodies.put(body),
            )
        )

    def report_reference(self, job: JobOffered) -> None:
        self._seq += 1
        self.source.send(
            do.ReportResultRef(
                source=self._name,
                connection=self.number,
                seq=ReportSeq(self._seq),
                job_id=job.job_id,
                fence=job.fence,
            )
        )

    def close(self) -> None:
        self.source.send(do.CloseSource(source=self._name, within_s=0))
        assert self.source.join(PATIENCE_S)


@pytest.fixture
def queue() -> Iterator[ScriptedQueue]:
    with ScriptedQueue() as running:
        yield running


@pytest.fixture
def store() -> Iterator[ScriptedStore]:
    with ScriptedStore() as running:
        yield running


@pytest.fixture
def worker(queue: ScriptedQueue, tmp_path: Path) -> Iterator[Worker]:
    running = Worker(queue.url, tmp_path / "spool")
    running.source.start()
    yield running
    running.close()


def works(worker: Worker, connection: QueueConnection, job_id: str = "proof") -> None:
    """The connection carries a job to its answer, and the answer is known to have been read."""
    connection.send(job_message(job_id, fence_token=42))
    job = worker.inbox.until(JobOffered)
    seq = worker.report(job, b'{"ok": true}')
    assert connection.next() == {
        "type": "job_result",
        "job_id": job_id,
        "result": {"ok": True},
        "fence_token": 42,
    }
    assert worker.inbox.until(ReportsDelivered).seq == seq


# ---------------------------------------------------------------- the plain path


def test_a_job_there_and_back(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    job = worker.offer(connection, job_message("a", mode="transient", fence_token=3, config_id="other"))
    assert (job.connection, job.job_id, job.fence, job.mode) == (1, "a", 3, Mode.TRANSIENT)
    assert (job.task, job.config_id) == ("openai/chat-completion", "other")
    assert job.body is not None
    payload = worker.bodies.get(job.body)
    assert isinstance(payload, bytes)
    assert json.loads(payload) == {"task": "openai/chat-completion", "messages": []}
    worker.report(job, b'{"output": "hi"}')
    answer = connection.next_bytes()
    assert answer == b'{"type":"job_result","job_id":"a","result":{"output": "hi"},"fence_token":3}'


@pytest.mark.slow
def test_the_same_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS_FILE))
    with ScriptedQueue(tls=True) as queue:
        worker = Worker(queue.url, tmp_path / "spool")
        worker.source.start()
        connection = worker.register(queue)
        works(worker, connection)
        large = {"task": "t", "x": "y" * 2_500_000}
        job = worker.offer(connection, job_message("large", payload=large))
        assert job.body is not None
        worker.report_body(job, job.body)
        assert connection.next()["result"] == large
        worker.close()


def test_many_jobs_at_once(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    count = 500
    connection.send_raw(b"".join(frame(TEXT, json.dumps(job_message(str(n))).encode()) for n in range(count)))
    for n in range(count):
        job = worker.inbox.until(JobOffered)
        assert job.job_id == str(n)
        worker.report(job, b"%d" % n)
    answers = [connection.next() for _ in range(count)]
    assert [(answer["job_id"], answer["result"]) for answer in answers] == [(str(n), n) for n in range(count)]


def test_a_revocation_is_passed_on(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    connection.send({"type": "job_revoked", "job_id": "a", "reason": "cancelled"})
    event = worker.inbox.next(JobRevoked)
    assert (event.job_id, event.reason) == ("a", "cancelled")


def test_a_transient_job_is_answered_with_its_own_fence(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    job = worker.offer(connection, job_message("a", mode="transient", fence_token=17))
    worker.report_error(job, "boom")
    assert connection.next() == {"type": "job_error", "job_id": "a", "error": "boom", "fence_token": 17}


# ---------------------------------------------------------------- large messages


def test_a_job_of_two_mebibytes(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    payload = {"task": "openai/transcription", "audio": "A" * (2 * 1024 * 1024)}
    job = worker.offer(connection, job_message("a", payload=payload))
    assert job.task == "openai/transcription"
    assert job.body is not None
    kept = worker.bodies.get(job.body)
    assert isinstance(kept, SpoolFile)
    assert json.loads(kept.path.read_bytes()) == payload


@pytest.mark.slow
def test_a_job_beyond_the_limit_is_refused_alone(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    job = worker.offer(
        connection, job_message("big", fence_token=8, payload={"task": "t", "x": "y" * INBOUND_MAX_BYTES})
    )
    assert (job.job_id, job.fence, job.mode) == ("big", 8, Mode.PERSISTED)
    assert f"limit of {INBOUND_MAX_BYTES} bytes" in job.refusal
    worker.report_error(job, job.refusal)
    answer = connection.next()
    assert (answer["type"], answer["job_id"], answer["fence_token"]) == ("job_error", "big", 8)
    works(worker, connection)


def test_a_job_in_fragments(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    text = json.dumps(job_message("a")).encode()
    connection.send_raw(frame(TEXT, text[:10], final=False) + frame(9, b"ping") + frame(0, text[10:]))
    assert worker.inbox.next(JobOffered).job_id == "a"


# ---------------------------------------------------------------- junk


def test_junk_costs_neither_the_connection_nor_a_job(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    junk = [
        b"",
        b"nonsense",
        b"[1,2]",
        b"5",
        b"null",
        b"{}",
        b'{"type":"new"}',
        b'{"type":"job"}',
        b"\xff\xfe",
    ]
    junk += [b'{"type":"job","job_id":""}', b'{"type":"job","job_id":"x","fence_token":"1"}', b"[" * 50_000]
    for text in junk:
        connection.send_text(text)
    connection.send_raw(frame(BINARY, b"\x00\x01"))
    connection.send({"type": "error", "message": "what?"})
    connection.send({"type": "job_result_ref", "job_id": "a"})
    works(worker, connection)
    snapshot = worker.source.snapshot()
    assert snapshot.frames_ignored == len(junk) + 1
    assert snapshot.jobs_received == 1


def test_a_broken_frame_costs_the_connection_but_not_the_worker(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    connection.send_raw(b"\xff\xff\xff\xff")
    assert "broke the protocol" in worker.inbox.next(SourceDisconnected).reason
    connection.wait_ended()
    works(worker, worker.register(queue))


# ---------------------------------------------------------------- lost connections


@pytest.mark.parametrize("code", [1011, 1012])
def test_a_close_in_the_middle_of_a_job(queue: ScriptedQueue, worker: Worker, code: int) -> None:
    connection = worker.register(queue)
    job = worker.offer(connection, job_message("a", fence_token=5))
    connection.close(code, "restart")
    lost = worker.inbox.next(SourceDisconnected)
    assert lost.reason == f"closed by the peer with {code} restart"
    # The result is ready only now: it goes out on the next connection, with the fence of the old one.
    again = worker.register(queue)
    worker.report(job, b"1")
    assert again.next() == {"type": "job_result", "job_id": "a", "result": 1, "fence_token": 5}


def test_an_abort_without_a_close_frame(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    worker.offer(connection, job_message("a"))
    connection.abort()
    worker.inbox.next(SourceDisconnected)
    works(worker, worker.register(queue))


def test_a_report_that_was_written_but_not_read_is_not_called_delivered(tmp_path: Path) -> None:
    with ScriptedQueue(answers_pings=False) as queue:
        worker = Worker(queue.url, tmp_path / "spool")
        worker.source.start()
        connection = worker.register(queue)
        job = worker.offer(connection, job_message("a"))
        worker.report(job, b"1")
        connection.next()
        connection.abort()
        worker.inbox.next(SourceDisconnected)
        worker.close()


def test_a_close_right_after_register_again_and_again(queue: ScriptedQueue, worker: Worker) -> None:
    for number in range(1, 6):
        connection = worker.register(queue)
        assert worker.number == ConnectionId(number)
        connection.close(1008)
        worker.inbox.next(SourceDisconnected)
    works(worker, worker.register(queue))


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refused_upgrade_is_tried_again(tmp_path: Path, status: int) -> None:
    with ScriptedQueue() as queue:
        queue.refuse.extend([status, status])
        worker = Worker(queue.url, tmp_path / "spool")
        worker.source.start()
        works(worker, worker.register(queue))
        snapshot = worker.source.snapshot()
        assert snapshot.connect_failures == 2
        assert snapshot.auth_refusals == (2 if status in {401, 403} else 0)
        worker.close()


def test_jobs_that_came_just_before_the_end_are_not_lost(queue: ScriptedQueue, worker: Worker) -> None:
    connection = worker.register(queue)
    connection.send(job_message("a"))
    connection.send(job_message("b"))
    connection.close(1001)
    assert [worker.inbox.next(JobOffered).job_id for _ in range(2)] == ["a", "b"]
    worker.inbox.next(SourceDisconnected)


# ---------------------------------------------------------------- presigned transfers


def test_a_payload_behind_a_url(queue: ScriptedQueue, worker: Worker, store: ScriptedStore) -> None:
    connection = worker.register(queue)
    store.answers.append(Answer(body=b'{"task":"t","n":1}'))
    job = worker.offer(connection, job_message("a", payload_url=f"{store.url}/p?sig=1", payload=None))
    assert (job.body, job.task) == (None, "")
    worker.fetch(job)
    fetched = worker.inbox.next(PayloadFetched)
    assert (fetched.job_id, fetched.fence, fetched.task) == ("a", 1, "t")
    assert worker.bodies.get(fetched.body) == b'{"task":"t","n":1}'


def test_a_payload_that_is_not_there(queue: ScriptedQueue, worker: Worker, store: ScriptedStore) -> None:
    connection = worker.register(queue)
    store.answers.append(Answer(status=404))
    job = worker.offer(connection, job_message("a", payload_url=f"{store.url}/p?sig=1"))
    worker.fetch(job)
    failed = worker.inbox.next(PayloadFetchFailed)
    assert "HTTP 404" in failed.error
    works(worker, connection)


def test_a_slow_payload_holds_up_nothing_else(
    queue: ScriptedQueue, worker: Worker, store: ScriptedStore
) -> None:
    connection = worker.register(queue)
    gate = threading.Event()
    store.answers.append(Answer(body=b'{"task":"slow"}', before=lambda: gate.wait(PATIENCE_S)))
    job = worker.offer(connection, job_message("slow", payload_url=store.url))
    worker.fetch(job)
    store.request()
    works(worker, connection)
    connection.send({"type": "job_revoked", "job_id": "other"})
    worker.inbox.next(JobRevoked)
    gate.set()
    assert worker.inbox.next(PayloadFetched).job_id == "slow"


def test_a_download_goes_on_while_the_connection_is_lost(
    queue: ScriptedQueue, worker: Worker, store: ScriptedStore
) -> None:
    connection = worker.register(queue)
    gate = threading.Event()
    store.answers.append(Answer(body=b"{}", before=lambda: gate.wait(PATIENCE_S)))
    worker.fetch(worker.offer(connection, job_message("a", payload_url=store.url)))
    store.request()
    connection.abort()
    worker.inbox.next(SourceDisconnected)
    worker.register(queue)
    gate.set()
    assert worker.inbox.next(PayloadFetched).job_id == "a"


def test_a_result_behind_a_url(queue: ScriptedQueue, worker: Worker, store: ScriptedStore) -> None:
    connection = worker.register(queue)
    job = worker.offer(connection, job_message("a", fence_token=7, result_upload_url=f"{store.url}/r?sig=1"))
    result = b'{"x": "' + b"a" * 262_144 + b'"}'
    worker.upload(job, result)
    worker.inbox.next(ResultUploaded)
    request = store.request()
    assert (request.method, request.path, request.body) == ("PUT", "/r?sig=1", result)
    assert request.headers["Content-Type"] == "application/json"
    worker.report_reference(job)
    assert connection.next() == {"type": "job_result_ref", "job_id": "a", "fence_token": 7}


def test_a_refused_upload_leaves_the_result_to_be_sent_inline(
    queue: ScriptedQueue, worker: Worker, store: ScriptedStore
) -> None:
    connection = worker.register(queue)
    store.answers.append(Answer(status=403))
    job = worker.offer(connection, job_message("a", result_upload_url=f"{store.url}/r?sig=1"))
    result = b'{"x":"' + b"a" * 300_000 + b'"}'
    worker.upload(job, result)
    assert "HTTP 403" in worker.inbox.next(ResultUploadFailed).error
    worker.report(job, result)
    assert connection.next_bytes() == (
        b'{"type":"job_result","job_id":"a","result":%b,"fence_token":1}' % result
    )


def test_an_abandoned_download_says_nothing(
    queue: ScriptedQueue, worker: Worker, store: ScriptedStore
) -> None:
    connection = worker.register(queue)
    store.answers.append(Answer(body=b"x" * 100, stall_after=1))
    job = worker.offer(connection, job_message("a", payload_url=store.url))
    worker.fetch(job)
    store.request()
    worker.source.send(do.AbandonTransfer(source=job.source, job_id=JobId("a"), fence=Fence(1)))
    works(worker, connection)
    assert worker.inbox.empty()
    assert worker.source.snapshot().transfers_running == 0
