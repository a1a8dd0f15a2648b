from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuward_ipc.types import INLINE_BODY_MAX_BYTES, Fence, JobId, SourceName
from gpuward_supervisor.bodies import Bodies, SpoolFile
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core.events import (
    BodyId,
    PayloadFetched,
    PayloadFetchFailed,
    ResultUploaded,
    ResultUploadFailed,
)
from gpuward_supervisor.sources.base import TransferSettings
from gpuward_supervisor.sources.transfers import Transfers
from support.event_inbox import EventInbox
from support.scripted_store import Answer, ScriptedStore

SOURCE = SourceName("casola")
FAST = TransferSettings(backoff_first_s=0.001, backoff_max_s=0.002)


@pytest.fixture
def store() -> Iterator[ScriptedStore]:
    with ScriptedStore() as running:
        yield running


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    return Bodies(tmp_path / "spool")


@pytest.fixture
def inbox() -> EventInbox:
    return EventInbox()


@pytest.fixture
def transfers(bodies: Bodies, inbox: EventInbox) -> Transfers:
    return Transfers(FAST, bodies, inbox.post)


def fetch(url: str, job_id: str = "a") -> do.FetchPayload:
    return do.FetchPayload(source=SOURCE, job_id=JobId(job_id), fence=Fence(1), url=url)


def put(url: str, body: BodyId) -> do.UploadResult:
    return do.UploadResult(source=SOURCE, job_id=JobId("a"), fence=Fence(1), url=url, body=body)


# ---------------------------------------------------------------- payloads


def test_a_payload_arrives_with_its_task(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers
) -> None:
    payload = b'{"messages":[],"task":"t"}'
    store.answers.append(Answer(body=payload))
    transfers.begin(fetch(store.url))
    event = inbox.next(PayloadFetched)
    assert (event.job_id, event.fence, event.task, event.body_bytes) == ("a", 1, "t", len(payload))
    assert bodies.get(event.body) == payload
    assert transfers.running == 0


def test_a_large_payload_lands_in_a_file(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers
) -> None:
    payload = b'{"task":"t","x":"' + b"y" * INLINE_BODY_MAX_BYTES + b'"}'
    store.answers.append(Answer(body=payload))
    transfers.begin(fetch(store.url))
    event = inbox.next(PayloadFetched)
    kept = bodies.get(event.body)
    assert isinstance(kept, SpoolFile)
    assert (event.task, event.body_bytes, kept.size_bytes) == ("t", len(payload), len(payload))
    assert kept.path.read_bytes() == payload


def test_a_payload_is_asked_for_again_until_it_comes(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers
) -> None:
    store.answers += [Answer(status=503), Answer(body=b'["x"]', cut_after=2), Answer(body=b"[]")]
    transfers.begin(fetch(store.url))
    event = inbox.next(PayloadFetched)
    assert bodies.get(event.body) == b"[]"
    assert len(store.requests()) == 3


def test_a_payload_that_is_not_there_fails_at_once_and_says_so(
    store: ScriptedStore, inbox: EventInbox, transfers: Transfers
) -> None:
    store.answers.append(Answer(status=404))
    transfers.begin(fetch(f"{store.url}/p?sig=secret"))
    error = inbox.next(PayloadFetchFailed).error
    assert "payload could not be downloaded" in error
    assert "HTTP 404" in error
    assert "secret" not in error
    assert len(store.requests()) == 1


def test_tries_are_counted(store: ScriptedStore, inbox: EventInbox, transfers: Transfers) -> None:
    store.answers += [Answer(status=500)] * 9
    transfers.begin(fetch(store.url))
    assert "4 tries" in inbox.next(PayloadFetchFailed).error
    assert len(store.requests()) == 4


@pytest.mark.parametrize("size", [0, INLINE_BODY_MAX_BYTES])
def test_a_payload_that_is_not_json_is_refused(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers, size: int
) -> None:
    store.answers.append(Answer(body=b"<html>" + b" " * size))
    transfers.begin(fetch(store.url))
    assert "not JSON" in inbox.next(PayloadFetchFailed).error
    assert list(bodies.spool_dir.iterdir()) == []
    assert len(bodies) == 0


def test_a_payload_whose_task_name_no_assignment_could_carry_is_refused(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers
) -> None:
    store.answers.append(Answer(body=b'{"task":"' + b"t" * 5_000 + b'"}'))
    transfers.begin(fetch(store.url))
    assert "task name has 5000 characters" in inbox.next(PayloadFetchFailed).error
    assert len(bodies) == 0


def test_hosts_that_cannot_be_looked_up_fail_their_jobs_and_no_others(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox
) -> None:
    transfers = Transfers(TransferSettings(concurrency=1), bodies, inbox.post)
    transfers.begin(fetch("http://a..b/x"))
    assert "not a URL" in inbox.next(PayloadFetchFailed).error
    store.answers.append(Answer(body=b"{}"))
    transfers.begin(fetch(store.url, "b"))
    assert inbox.next(PayloadFetched).job_id == "b"


def test_a_bug_in_a_transfer_costs_that_job_only(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    transfers = Transfers(TransferSettings(concurrency=1), bodies, inbox.post)
    with monkeypatch.context() as patched:
        patched.setattr("gpuward_supervisor.sources.transfers.download", broken)
        patched.setattr("gpuward_supervisor.sources.transfers.upload", broken)
        transfers.begin(fetch(store.url))
        assert "internal error of the worker (ZeroDivisionError)" in inbox.next(PayloadFetchFailed).error
        transfers.begin(put(store.url, bodies.put(b"1")))
        assert "internal error of the worker (ZeroDivisionError)" in inbox.next(ResultUploadFailed).error
    assert transfers.running == 0
    store.answers.append(Answer(body=b"{}"))
    transfers.begin(fetch(store.url, "b"))
    assert inbox.next(PayloadFetched).job_id == "b"


def test_a_payload_beyond_the_limit_is_refused(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox
) -> None:
    transfers = Transfers(TransferSettings(max_bytes=5), bodies, inbox.post)
    store.answers.append(Answer(body=b'"12345"'))
    transfers.begin(fetch(store.url))
    assert "limit is 5" in inbox.next(PayloadFetchFailed).error


def test_a_spool_that_cannot_be_written_fails_the_payload_alone(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers
) -> None:
    bodies.spool_dir.rmdir()
    store.answers.append(Answer(body=b"x" * (INLINE_BODY_MAX_BYTES + 1)))
    transfers.begin(fetch(store.url))
    assert "spool cannot be written" in inbox.next(PayloadFetchFailed).error
    store.answers.append(Answer(body=b"{}"))
    transfers.begin(fetch(store.url, "b"))
    assert inbox.next(PayloadFetched).job_id == "b"


def test_a_server_that_trickles_is_cut_off_at_the_deadline(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox
) -> None:
    settings = TransferSettings(deadline_s=0.05, attempts=2, backoff_first_s=0.001)
    transfers = Transfers(settings, bodies, inbox.post)
    store.answers += [Answer(body=b"x" * 100, stall_after=1)] * 2
    transfers.begin(fetch(store.url))
    error = inbox.next(PayloadFetchFailed).error
    assert "not done within 0.05 s" in error
    assert "2 tries" in error


def test_what_came_until_the_deadline_is_not_taken_for_the_whole(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox
) -> None:
    """A body of unknown length ends with its connection, and it is we who have cut that."""
    transfers = Transfers(TransferSettings(deadline_s=0.05, attempts=1), bodies, inbox.post)
    unknown_length = (("Transfer-Encoding", "identity"),)
    store.answers.append(Answer(body=b'{"task":"t"} and more', stall_after=12, headers=unknown_length))
    transfers.begin(fetch(store.url))
    assert "not done within 0.05 s" in inbox.next(PayloadFetchFailed).error


# ---------------------------------------------------------------- results


def test_a_result_is_uploaded_from_memory(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers
) -> None:
    transfers.begin(put(f"{store.url}/r", bodies.put(b'{"x":1}')))
    event = inbox.next(ResultUploaded)
    assert (event.job_id, event.fence) == ("a", 1)
    assert store.request().body == b'{"x":1}'


def test_a_result_is_uploaded_from_its_file_again_after_a_failure(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers
) -> None:
    result = b'"' + b"y" * 600_000 + b'"'
    path = bodies.new_spool_path()
    path.write_bytes(result)
    store.answers.append(Answer(status=500))
    transfers.begin(put(store.url, bodies.put_file(path, len(result))))
    inbox.next(ResultUploaded)
    assert [request.body for request in store.requests()] == [result, result]


def test_a_refused_upload_is_not_repeated(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers
) -> None:
    store.answers.append(Answer(status=403))
    transfers.begin(put(f"{store.url}/r?sig=secret", bodies.put(b"{}")))
    error = inbox.next(ResultUploadFailed).error
    assert "result could not be uploaded" in error
    assert "HTTP 403" in error
    assert "secret" not in error
    assert len(store.requests()) == 1


def test_a_body_that_was_forgotten_is_not_uploaded(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers
) -> None:
    body = bodies.put(b"{}")
    bodies.forget(body)
    transfers.begin(put(store.url, body))
    assert "forgotten" in inbox.next(ResultUploadFailed).error


def test_a_body_whose_file_is_gone_is_a_failure(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox, transfers: Transfers, tmp_path: Path
) -> None:
    transfers.begin(put(store.url, bodies.put_file(tmp_path / "gone", 5)))
    assert "spool file" in inbox.next(ResultUploadFailed).error
    assert store.requests() == []


# ---------------------------------------------------------------- many, and none any more


def test_an_abandoned_transfer_ends_at_once_and_says_nothing(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox
) -> None:
    one_at_a_time = Transfers(TransferSettings(concurrency=1), bodies, inbox.post)
    store.answers.append(Answer(body=b"x" * 100, stall_after=10))
    one_at_a_time.begin(fetch(store.url, "slow"))
    one_at_a_time.begin(fetch(store.url, "waiting"))
    store.request()
    one_at_a_time.abandon(JobId("waiting"), Fence(1))
    one_at_a_time.abandon(JobId("slow"), Fence(1))
    store.answers.append(Answer(body=b"{}"))
    # Its turn comes only because the slow one has ended.
    one_at_a_time.begin(fetch(store.url, "next"))
    assert inbox.next(PayloadFetched).job_id == "next"
    assert inbox.empty()
    assert one_at_a_time.running == 0
    assert len(bodies) == 1


def test_abandoning_between_two_tries_stops_the_retries(
    store: ScriptedStore, bodies: Bodies, inbox: EventInbox
) -> None:
    transfers = Transfers(TransferSettings(concurrency=1, backoff_first_s=3600), bodies, inbox.post)
    store.answers.append(Answer(status=500))
    transfers.begin(fetch(store.url, "retrying"))
    store.request()
    transfers.abandon(JobId("retrying"), Fence(1))
    store.answers.append(Answer(body=b"{}"))
    transfers.begin(fetch(store.url, "next"))
    assert inbox.next(PayloadFetched).job_id == "next"
    assert inbox.empty()


def test_abandoning_one_fence_leaves_the_other(
    store: ScriptedStore, inbox: EventInbox, transfers: Transfers
) -> None:
    transfers.abandon(JobId("a"), Fence(2))
    store.answers.append(Answer(body=b"{}"))
    transfers.begin(fetch(store.url))
    transfers.abandon(JobId("a"), Fence(2))
    assert inbox.next(PayloadFetched).fence == 1


def test_abandoning_all_cuts_everything(
    store: ScriptedStore, inbox: EventInbox, transfers: Transfers
) -> None:
    store.answers += [Answer(body=b"x" * 100, stall_after=10)] * 3
    for name in "abc":
        transfers.begin(fetch(store.url, name))
    for _ in range(3):
        store.request()
    assert transfers.running == 3
    transfers.abandon_all()
    assert transfers.running == 0
    assert inbox.empty()


def test_no_more_than_allowed_run_at_once(store: ScriptedStore, bodies: Bodies, inbox: EventInbox) -> None:
    transfers = Transfers(TransferSettings(concurrency=2), bodies, inbox.post)
    gate = threading.Event()
    store.answers += [Answer(body=b"{}", before=lambda: gate.wait(20))] * 4
    for name in "abcd":
        transfers.begin(fetch(store.url, name))
    store.request()
    store.request()
    assert transfers.running == 4
    assert store.requests() == []
    gate.set()
    assert {inbox.next(PayloadFetched).job_id for _ in range(4)} == set("abcd")
