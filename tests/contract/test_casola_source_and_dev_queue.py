"""The Casola source and the development queue agree; each was written from the protocol alone.

A core that answers every job with its own payload stands in for the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.records import Mode, Status
from gpuward_devqueue.thread import DevQueueThread
from gpuward_ipc.types import INLINE_BODY_MAX_BYTES
from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events
from gpuward_supervisor.core.events import BodyId, ReportSeq
from gpuward_supervisor.secrets import Secret
from gpuward_supervisor.sources.base import CasolaSettings, Source
from gpuward_supervisor.sources.registry import build_source
from support.event_inbox import EventInbox
from support.patience import Patience

PATIENCE_S = 20


class Echo:
    """A source whose jobs are answered with their payloads, by URL where the queue gave one."""

    def __init__(self, url: str, folder: Path, token: str = "") -> None:
        self.bodies = Bodies(folder)
        self.inbox = EventInbox()
        settings = CasolaSettings(
            url=url,
            config_id="default",
            worker_id="node-1",
            token=Secret(token),
            backoff_first_s=0.001,
            backoff_max_s=0.002,
        )
        self.name = settings.name
        self.connection = events.ConnectionId(0)
        self.source: Source = build_source(settings, self.bodies, self._post, self._post_all)
        self._offers: dict[str, events.JobOffered] = {}
        self._seq = 0

    def close(self) -> None:
        self.source.send(do.CloseSource(source=self.name, within_s=PATIENCE_S))
        assert self.source.join(PATIENCE_S)

    def _post_all(self, happened: Iterable[events.SupervisorEvent]) -> None:
        for event in happened:
            self._post(event)

    def _post(self, event: events.SupervisorEvent) -> None:
        self.inbox.post(event)
        match event:
            case events.SourceConnected(connection=connection):
                self.connection = connection
                self.source.send(do.Register(source=self.name, connection=connection, capacity=4))
            case events.JobOffered(body=None):
                self._offers[event.job_id] = event
                self.source.send(
                    do.FetchPayload(
                        source=self.name, job_id=event.job_id, fence=event.fence, url=event.payload_url
                    )
                )
            case events.JobOffered(body=body):
                assert body is not None
                self._offers[event.job_id] = event
                self._answer(event, body)
            case events.PayloadFetched(body=body):
                self._answer(self._offers[event.job_id], body)
            case events.ResultUploaded(job_id=job_id, fence=fence):
                self._seq += 1
                self.source.send(
                    do.ReportResultRef(
                        source=self.name,
                        connection=self.connection,
                        seq=ReportSeq(self._seq),
                        job_id=job_id,
                        fence=fence,
                    )
                )
            case _:
                pass

    def _answer(self, job: events.JobOffered, body: BodyId) -> None:
        if job.result_upload_url:
            url = job.result_upload_url
            command: do.UploadResult | do.ReportResult = do.UploadResult(
                source=self.name, job_id=job.job_id, fence=job.fence, url=url, body=body
            )
        else:
            self._seq += 1
            command = do.ReportResult(
                source=self.name,
                connection=self.connection,
                seq=ReportSeq(self._seq),
                job_id=job.job_id,
                fence=job.fence,
                body=body,
            )
        self.source.send(command)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def queue() -> Iterator[DevQueueThread]:
    with DevQueueThread() as running:
        yield running


def echoed(queue: DevQueueThread, payloads: list[dict[str, str]], mode: Mode) -> None:
    ids = queue.submit_many(payloads, mode)
    ended = queue.wait_terminal(ids, PATIENCE_S)
    for job_id, payload in zip(ids, payloads, strict=True):
        job = ended[job_id]
        assert (job.status, job.error) == (Status.COMPLETED, None)
        assert job.result is not None
        assert json.loads(bytes(job.result)) == payload


@pytest.mark.parametrize("mode", list(Mode))
def test_jobs_there_and_back(queue: DevQueueThread, folder: Path, mode: Mode) -> None:
    echo = Echo(queue.ws_url, folder)
    echo.source.start()
    (worker,) = queue.wait_workers(1)
    assert (worker.worker_id, worker.config_id, worker.capacity) == ("node-1", "default", 4)
    large = {"task": "t", "x": "y" * (INLINE_BODY_MAX_BYTES + 1)}
    echoed(queue, [{"task": "t", "n": str(n)} for n in range(50)] + [large], mode)
    echo.close()
    assert echo.source.snapshot().frames_ignored == 0


def test_payloads_and_results_by_url(folder: Path) -> None:
    with DevQueueThread(DevQueueConfig(presign=True)) as queue:
        echo = Echo(queue.ws_url, folder)
        echo.source.start()
        queue.wait_workers(1)
        echoed(queue, [{"task": "t", "x": "y" * size} for size in (10, 300_000, 2_000_000)], Mode.PERSISTED)
        echo.close()


def test_the_queue_reads_a_report_before_it_says_so(queue: DevQueueThread, folder: Path) -> None:
    echo = Echo(queue.ws_url, folder)
    echo.source.start()
    queue.wait_workers(1)
    echoed(queue, [{"task": "t"}], Mode.PERSISTED)
    echo.inbox.until(events.ReportsDelivered)
    echo.close()


def test_a_wrong_token_is_refused_as_such(folder: Path) -> None:
    with DevQueueThread(DevQueueConfig(token="right")) as queue:
        right, wrong = Echo(queue.ws_url, folder, "right"), Echo(queue.ws_url, folder, "wrong")
        wrong.source.start()
        right.source.start()
        queue.wait_workers(1)
        patience = Patience(PATIENCE_S)
        while not wrong.source.snapshot().auth_refused:
            patience.wait("the source to say that its token was refused")
        wrong.source.send(do.CloseSource(source=wrong.name, within_s=0))
        assert wrong.source.join(PATIENCE_S)
        assert wrong.source.snapshot().connection == 0
        right.close()


@pytest.mark.parametrize("fault", ["close-after-register", "abort-mid-job", "close-mid-job", "junk-frames"])
@pytest.mark.slow
def test_a_queue_that_misbehaves_gets_its_answer_in_the_end(folder: Path, fault: str) -> None:
    # A report that met the end of its connection is gone here, for only the core sends it again: the queue
    # asks once more when the lease is over.
    with DevQueueThread(DevQueueConfig(lease_s=0.2)) as queue:
        queue.misbehave(fault)
        echo = Echo(queue.ws_url, folder)
        echo.source.start()
        job_id = queue.submit({"task": "t"}, Mode.PERSISTED)
        assert queue.wait_terminal([job_id], PATIENCE_S)[job_id].status is Status.COMPLETED
        echo.close()
