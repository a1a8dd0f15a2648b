"""A live node against a queue that does what the protocol page's list of cases asks for, case by case."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.ledger import LinkNote, Note
from gpuward_devqueue.records import JobId, Status
from gpuward_devqueue.thread import DevQueueThread
from support.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Start = Callable[..., Node]


@pytest.fixture
def queue() -> Iterator[DevQueueThread]:
    config = DevQueueConfig(
        presign=True,
        payload_url_threshold_bytes=10_000_000,
        frames_kept_max=10_000,
        max_body_bytes=1 << 28,
        max_frame_bytes=1 << 26,
    )
    with DevQueueThread(config) as queue:
        yield queue


@pytest.fixture
def url_queue() -> Iterator[DevQueueThread]:
    """A queue that offers every payload by URL."""
    config = DevQueueConfig(presign=True, payload_url_threshold_bytes=0, frames_kept_max=10_000)
    with DevQueueThread(config) as queue:
        yield queue


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    nodes: list[Node] = []

    def new(queue: DevQueueThread, engine: str = 'kind = "echo"', **options: Any) -> Node:
        node = Node(tmp_path / f"n{len(nodes)}", queue.ws_url, engine=engine, executors=1, **options)
        nodes.append(node)
        node.start()
        node.wait_ready(1)
        queue.wait_workers(1, 20)
        return node

    yield new
    for node in nodes:
        node.__exit__(None, None, None)


SIMULATED = 'kind = "simulated"\nextra_args = ["--token-s", "0.05"]'
LONG_CHAT = {
    "task": "openai/chat-completion",
    "messages": [{"role": "user", "content": "a long answer please"}],
    "max_tokens": 2000,
}
SHORT_CHAT = {**LONG_CHAT, "max_tokens": 20}


def payload_of(size: int) -> bytes:
    """A payload, and so an echo result, of exactly this many bytes."""
    empty = b'{"task":"t","x":""}'
    return empty[:-2] + b"x" * (size - len(empty)) + empty[-2:]


def notes(queue: DevQueueThread, job: JobId) -> list[Note]:
    return [entry.note for entry in queue.page(job)]


def sent(queue: DevQueueThread, kind: str) -> list[dict[str, Any]]:
    """Frames of this type that the worker sent; the queue keeps the beginning of long ones only."""
    frames = []
    for seen in queue.frames():
        if f'"type":"{kind}"' not in seen.text.replace(" ", "")[:60]:
            continue
        try:
            frames.append(json.loads(seen.text))
        except ValueError:
            frames.append({"type": kind})
    return frames


def completed(queue: DevQueueThread, job: JobId, within_s: float = 30.0) -> bytes:
    view = queue.wait_terminal([job], within_s)[job]
    assert view.status is Status.COMPLETED, (view.status, view.error)
    assert view.result is not None
    return bytes(view.result)


def failed(queue: DevQueueThread, job: JobId, within_s: float = 30.0) -> str:
    view = queue.wait_terminal([job], within_s)[job]
    assert view.status is Status.FAILED, (view.status, view.error)
    return str(view.error)


def wait_note(queue: DevQueueThread, job: JobId, note: Note, within_s: float = 20.0) -> None:
    queue.wait_until(lambda broker: any(e.note is note for e in broker.page(job)), within_s, f"{job} {note}")


def wait_link(queue: DevQueueThread, note: LinkNote, count: int = 1, within_s: float = 20.0) -> None:
    queue.wait_until(
        lambda broker: sum(e.note is note for e in broker.report().connections) >= count,
        within_s,
        f"{count} x {note}",
    )


# ---------------------------------------------------------------- results by reference


def test_a_result_of_262_144_bytes_goes_inline(queue: DevQueueThread, start: Start) -> None:
    start(queue)
    job = queue.submit(payload_of(262_144))
    assert len(completed(queue, job)) == 262_144
    assert Note.UPLOADED not in notes(queue, job)
    assert [frame["type"] for frame in sent(queue, "job_result")] == ["job_result"]


def test_a_result_of_262_145_bytes_is_uploaded(queue: DevQueueThread, start: Start) -> None:
    start(queue)
    job = queue.submit(payload_of(262_145))
    assert len(completed(queue, job)) == 262_145
    assert Note.UPLOADED in notes(queue, job)
    (frame,) = sent(queue, "job_result_ref")
    assert frame == {"type": "job_result_ref", "job_id": job, "fence_token": queue.job(job).fence_token}
    assert sent(queue, "job_result") == []


def test_a_refused_upload_falls_back_to_inline(queue: DevQueueThread, start: Start) -> None:
    start(queue)
    queue.misbehave("refuse-put", status=403, times=0)
    job = queue.submit(payload_of(300_000))
    assert len(completed(queue, job)) == 300_000
    assert Note.UPLOAD_REFUSED in notes(queue, job)
    assert len(sent(queue, "job_result")) == 1


def test_an_upload_that_fails_at_first_is_tried_again(queue: DevQueueThread, start: Start) -> None:
    start(queue)
    queue.misbehave("refuse-put", status=503, times=2)
    job = queue.submit(payload_of(300_000))
    assert len(completed(queue, job)) == 300_000
    assert Note.UPLOADED in notes(queue, job)


# ---------------------------------------------------------------- payloads by reference


def test_a_payload_is_fetched_from_its_url(url_queue: DevQueueThread, start: Start) -> None:
    start(url_queue)
    job = url_queue.submit(payload_of(50_000))
    assert completed(url_queue, job) == payload_of(50_000)
    assert Note.PAYLOAD_FETCHED in notes(url_queue, job)


def test_a_payload_that_is_not_there_fails_the_job_and_says_so(
    url_queue: DevQueueThread, start: Start
) -> None:
    start(url_queue)
    url_queue.misbehave("refuse-payload", status=404, times=0)
    error = failed(url_queue, url_queue.submit(payload_of(100)))
    assert "payload" in error and "404" in error
    assert "token=" not in error and "sig" not in error


def test_a_slow_payload_holds_up_nothing_else(url_queue: DevQueueThread, start: Start) -> None:
    start(url_queue)
    url_queue.misbehave("slow-payload", delay_s=3.0)
    slow = url_queue.submit(payload_of(100))
    # The delay belongs to whichever download comes first: it must have struck before the quick job is there.
    url_queue.wait_until(lambda broker: broker.counters().misbehaved >= 1, 20, "the slow download to begin")
    quick = url_queue.submit(payload_of(200))
    completed(url_queue, quick)
    assert url_queue.job(slow).status is Status.RUNNING
    completed(url_queue, slow)


def test_a_payload_that_is_not_json_fails_the_job(url_queue: DevQueueThread, start: Start) -> None:
    start(url_queue)
    url_queue.misbehave("broken-payload", times=0)
    assert "payload" in failed(url_queue, url_queue.submit(payload_of(100)))


# ---------------------------------------------------------------- fences and revocation


def test_a_revoked_job_is_stopped_and_nothing_is_reported(queue: DevQueueThread, start: Start) -> None:
    node = start(queue, SIMULATED, slots=1)
    job = queue.submit(LONG_CHAT)
    node.wait_until(lambda: queue.job(job).status is Status.RUNNING, what="the job to run")
    queue.revoke(job)
    node.wait_for("job.revoked", job_id=job)
    # The only slot is free again long before the answer would have been done.
    completed(queue, queue.submit(SHORT_CHAT))
    assert not [f for kind in ("job_result", "job_error") for f in sent(queue, kind) if f["job_id"] == job]
    assert queue.job(job).status is Status.REVOKED


def test_a_second_dispatch_with_a_higher_fence_supersedes_the_first(
    queue: DevQueueThread, start: Start
) -> None:
    start(queue, SIMULATED)
    queue.misbehave("duplicate-higher-fence")
    job = queue.submit(SHORT_CHAT)
    completed(queue, job)
    reports = [f["fence_token"] for f in sent(queue, "job_result") if f["job_id"] == job]
    assert reports == [queue.job(job).fence_token]
    assert not {Note.STALE, Note.DUPLICATE} & set(notes(queue, job))


def test_the_same_dispatch_twice_runs_once(queue: DevQueueThread, start: Start) -> None:
    start(queue, SIMULATED)
    queue.misbehave("duplicate-same-fence")
    job = queue.submit(SHORT_CHAT)
    completed(queue, job)
    completed(queue, queue.submit(SHORT_CHAT))
    assert len([f for f in sent(queue, "job_result") if f["job_id"] == job]) == 1


def test_transient_jobs_are_answered_under_their_own_fence(queue: DevQueueThread, start: Start) -> None:
    start(queue)
    job = queue.submit(payload_of(100), "transient")
    completed(queue, job)
    (frame,) = sent(queue, "job_result")
    assert frame["fence_token"] == queue.job(job).fence_token > 0


# ---------------------------------------------------------------- connections that break


@pytest.mark.parametrize("code", [1011, 1012])
def test_a_close_mid_job_loses_nothing(queue: DevQueueThread, start: Start, code: int) -> None:
    start(queue, SIMULATED)
    queue.misbehave("close-mid-job", code=code)
    job = queue.submit(SHORT_CHAT)
    completed(queue, job)
    assert notes(queue, job).count(Note.OFFERED) == 1
    wait_link(queue, LinkNote.REGISTERED, 2)


def test_a_cut_without_a_close_frame_loses_nothing(queue: DevQueueThread, start: Start) -> None:
    start(queue, SIMULATED)
    queue.misbehave("abort-mid-job")
    job = queue.submit(SHORT_CHAT)
    completed(queue, job)
    assert notes(queue, job).count(Note.OFFERED) == 1


def test_junk_frames_are_ignored_on_the_same_connection(queue: DevQueueThread, start: Start) -> None:
    start(queue)
    queue.misbehave("junk-frames")
    completed(queue, queue.submit(payload_of(100)))
    completed(queue, queue.submit(payload_of(100)))
    assert sum(e.note is LinkNote.CONNECTED for e in queue.ledger().connections) == 1


def test_a_job_of_two_mebibytes_is_run(queue: DevQueueThread, start: Start) -> None:
    start(queue)
    payload = payload_of(2 * 1024 * 1024)
    assert completed(queue, queue.submit(payload)) == payload
    assert sum(e.note is LinkNote.CONNECTED for e in queue.ledger().connections) == 1


def test_a_job_above_the_limit_is_refused_and_the_connection_lives(tmp_path: Path, start: Start) -> None:
    config = DevQueueConfig(frames_kept_max=100)
    with DevQueueThread(config) as queue:
        start(queue, extra="[limits]\ninbound_max_bytes = 100000\n")
        error = failed(queue, queue.submit(payload_of(200_000)))
        assert "100000" in error.replace(",", "") or "100,000" in error
        completed(queue, queue.submit(payload_of(100)))
        assert sum(e.note is LinkNote.CONNECTED for e in queue.ledger().connections) == 1


def test_a_queue_that_closes_right_after_register_is_not_hammered(
    queue: DevQueueThread, tmp_path: Path
) -> None:
    queue.misbehave("close-after-register", times=3)
    with Node(tmp_path / "n", queue.ws_url, engine='kind = "echo"', executors=1) as node:
        node.wait_ready(1)
        wait_link(queue, LinkNote.CONNECTED, 4, within_s=40)
        times = [e.at_s for e in reversed(queue.ledger().connections) if e.note is LinkNote.CONNECTED]
        times.sort()
        pauses = [later - sooner for sooner, later in itertools.pairwise(times)]
        # 1, 2, 4 s, each with up to 30 % on top: it grows, although every connection was opened.
        assert pauses[0] < pauses[1] < pauses[2]
        completed(queue, queue.submit(payload_of(100)))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_upgrade_is_told_apart_and_tried_again(
    queue: DevQueueThread, tmp_path: Path, status: int
) -> None:
    queue.misbehave("refuse-upgrade", status=status, times=1)
    with Node(tmp_path / "n", queue.ws_url, engine='kind = "echo"', executors=1) as node:
        node.wait_until(
            lambda: any(
                str(status) in json.dumps(line) and "source." in line["event"] for line in node.lines
            ),
            what=f"a log line that names {status}",
        )
        queue.wait_workers(1, 80)
        completed(queue, queue.submit(payload_of(100)))


def test_a_late_pong_delays_nothing_and_a_result_is_not_sent_twice(
    queue: DevQueueThread, start: Start
) -> None:
    start(queue)
    queue.misbehave("withhold-pong")
    job = queue.submit(payload_of(100))
    completed(queue, job)
    completed(queue, queue.submit(payload_of(200)))
    assert len([f for f in sent(queue, "job_result") if f["job_id"] == job]) == 1


# ---------------------------------------------------------------- drain and pause over a reconnect


def test_a_draining_node_says_so_again_after_a_reconnect(queue: DevQueueThread, start: Start) -> None:
    node = start(queue, SIMULATED, environment={"CASOLA_SHUTDOWN_GRACE_PERIOD": "20"})
    job = queue.submit({**LONG_CHAT, "max_tokens": 100})
    wait_note(queue, job, Note.OFFERED)
    assert node.process is not None
    node.process.terminate()
    wait_link(queue, LinkNote.DRAINED)
    queue.ask(_cut_all)
    wait_link(queue, LinkNote.DRAINED, 2)
    completed(queue, job)
    assert node.wait_exit() == 0


def test_a_paused_node_says_so_again_after_a_reconnect(queue: DevQueueThread, start: Start) -> None:
    """Its only executor is dead: it must not be offered jobs, before and after the reconnect."""
    node = start(
        queue,
        'kind = "simulated"\nextra_args = ["--token-s", "0.05"]',
        slots=2,
        extra="[restarts]\nbackoff_first_s = 8\n",
    )
    job = queue.submit(SHORT_CHAT)
    wait_note(queue, job, Note.OFFERED)
    os.kill(node.engine_core_pids()["cpu0"], signal.SIGKILL)
    wait_link(queue, LinkNote.PAUSED)
    queue.ask(_cut_all)
    wait_link(queue, LinkNote.PAUSED, 2)
    waiting = queue.submit(SHORT_CHAT)
    completed(queue, job, 60)
    completed(queue, waiting, 60)
    assert notes(queue, job).count(Note.OFFERED) == 1


def _cut_all(broker: Any) -> None:
    """Abort every worker's connection, as a network does."""
    for link in list(broker._links.values()):
        link.abort()
