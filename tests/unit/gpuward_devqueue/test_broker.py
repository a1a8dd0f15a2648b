"""The broker with links that only write down what they are told; `test_connection` has real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
import structlog

from gpuward_devqueue.broker import Broker
from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.errors import AlreadyTerminal, NoWorker, StillWaiting, UnknownJob
from gpuward_devqueue.ledger import LinkNote
from gpuward_devqueue.misbehaviour import JUNK_BINARIES, JUNK_TEXTS, Fault, misbehaviour
from gpuward_devqueue.records import ConnectionId, JobId, Mode, Status

REGISTER = '{"type":"register","worker_id":"w","config_id":"cfg","capacity":%d}'


class NotedLink:
    base_url = "http://q:1"

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.binary: list[bytes] = []
        self.ends: list[int | str] = []

    def send(self, text: bytes) -> None:
        self.sent.append(text)

    def send_binary(self, body: bytes) -> None:
        self.binary.append(body)

    def close(self, code: int, reason: str) -> None:
        self.ends.append(code)

    def abort(self) -> None:
        self.ends.append("abort")

    def frames(self) -> list[dict[str, Any]]:
        return [json.loads(text) for text in self.sent]


def worker_of(broker: Broker, capacity: int = 1) -> tuple[ConnectionId, NotedLink]:
    link, number = NotedLink(), broker.next_connection()
    broker.connected(number, link)
    broker.received_text(number, REGISTER % capacity)
    return number, link


def answer(broker: Broker, number: ConnectionId, frame: dict[str, Any], result: object = 1) -> None:
    answered = {
        "type": "job_result",
        "job_id": frame["job_id"],
        "result": result,
        "fence_token": frame["fence_token"],
    }
    broker.received_text(number, json.dumps(answered))


def run(story: Coroutine[object, object, None]) -> None:
    with structlog.testing.capture_logs():
        asyncio.run(story)


def test_a_submitted_job_is_sent_and_its_result_wakes_the_waiter() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        number, link = worker_of(broker)
        job_id = broker.submit(b'{"task":"t"}')
        (frame,) = link.frames()
        assert frame["job_id"] == job_id
        waiting = asyncio.create_task(broker.wait_terminal([job_id], 5))
        await asyncio.sleep(0)
        answer(broker, number, frame, {"answer": 42})
        views = await waiting
        assert views[job_id].status is Status.COMPLETED
        assert bytes(views[job_id].result or b"") == b'{"answer": 42}'

    run(story())


def test_a_caller_without_a_free_worker_is_refused_unless_it_may_wait() -> None:
    async def story() -> None:
        with pytest.raises(NoWorker, match="No worker available"):
            await Broker(DevQueueConfig()).ask(b"{}")
        patient = Broker(DevQueueConfig(queue_transient=True))
        asking = asyncio.create_task(patient.ask(b"{}"))
        await asyncio.sleep(0)
        number, link = worker_of(patient)
        answer(patient, number, link.frames()[0])
        assert (await asking).status is Status.COMPLETED

    run(story())


def test_an_answer_reaches_its_caller_even_when_the_job_is_forgotten_at_once() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig(jobs_kept_max=0))
        number, link = worker_of(broker, capacity=2)
        asking = [asyncio.create_task(broker.ask(b"{}")) for _ in range(2)]
        await asyncio.sleep(0)
        for frame in link.frames():
            answer(broker, number, frame, "hello")
        assert [(await task).result for task in asking] == [b'"hello"'] * 2

    run(story())


def test_waiting_too_long_names_the_jobs_that_are_open() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        worker_of(broker)
        job_id = broker.submit(b"{}", job_id="slow-one")
        with pytest.raises(StillWaiting, match=r"1 of 1 jobs .* slow-one running fence 1"):
            await broker.wait_terminal([job_id], 0.01)

    run(story())


def test_what_is_not_held_or_over_cannot_be_revoked() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        with pytest.raises(UnknownJob):
            broker.revoke(JobId("never"))
        job_id = broker.submit(b"{}")
        broker.revoke(job_id)
        with pytest.raises(AlreadyTerminal, match="revoked"):
            broker.revoke(job_id)

    run(story())


def test_jobs_can_be_listed_by_status() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        worker_of(broker)
        first, second = broker.submit(b"{}"), broker.submit(b"{}")
        assert [view.id for view in broker.jobs()] == [first, second]
        assert [view.id for view in broker.jobs(Status.PENDING)] == [second]
        assert len(broker.jobs(limit=1)) == 1
        assert broker.pending() == 1

    run(story())


def test_a_frame_that_makes_no_sense_is_answered_and_counted() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        number, link = worker_of(broker)
        broker.received_text(number, "{not json")
        broker.received_binary(number, 3)
        assert [frame["type"] for frame in link.frames()] == ["error", "error"]
        assert link.frames()[0]["message"] == "Invalid JSON"
        assert broker.counters().violations == 2

    run(story())


def test_an_odd_frame_is_acted_on_and_counted() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        number, link = worker_of(broker)
        broker.received_text(number, '{"type":"pause","extra":1}')
        assert broker.workers()[0].paused
        assert link.sent == []
        assert broker.counters().violations == 1

    run(story())


def test_frames_of_workers_are_remembered_only_on_request() -> None:
    async def story() -> None:
        forgetful = Broker(DevQueueConfig())
        worker_of(forgetful)
        assert forgetful.frames() == []
        mindful = Broker(DevQueueConfig(frames_kept_max=1))
        number, _ = worker_of(mindful)
        mindful.received_text(number, '{"type":"drain"}')
        assert [frame.text for frame in mindful.frames()] == ['{"type":"drain"}']

    run(story())


def test_junk_comes_before_the_job_and_the_job_still_comes() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        broker.script.add(misbehaviour(Fault.JUNK_FRAMES))
        _, link = worker_of(broker)
        broker.submit(b"{}", job_id="real")
        assert link.sent[:-1] == list(JUNK_TEXTS)
        assert link.binary == list(JUNK_BINARIES)
        assert json.loads(link.sent[-1])["job_id"] == "real"
        broker.submit(b"{}")
        assert len(link.sent) == len(JUNK_TEXTS) + 1

    run(story())


def test_duplicates_repeat_the_job_with_the_same_or_a_higher_fence() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        number, link = worker_of(broker)
        broker.script.add(misbehaviour(Fault.DUPLICATE_SAME_FENCE))
        broker.script.add(misbehaviour(Fault.DUPLICATE_HIGHER_FENCE))
        job_id = broker.submit(b"{}", Mode.TRANSIENT)
        assert [(frame["job_id"], frame["fence_token"]) for frame in link.frames()] == [
            (job_id, 1),
            (job_id, 1),
            (job_id, 2),
        ]
        answer(broker, number, link.frames()[0])
        assert broker.job(job_id).status is Status.RUNNING
        answer(broker, number, link.frames()[2])
        assert broker.job(job_id).status is Status.COMPLETED

    run(story())


def test_mid_job_faults_strike_after_the_job_was_sent() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        _, link = worker_of(broker)
        for fault in (Fault.CLOSE_MID_JOB, Fault.ABORT_MID_JOB, Fault.REVOKE_MID_JOB):
            broker.script.add(misbehaviour(fault))
        job_id = broker.submit(b"{}")
        assert [frame["type"] for frame in link.frames()] == ["job", "job_revoked"]
        assert link.ends == [1011, "abort"]
        assert broker.job(job_id).status is Status.REVOKED
        assert broker.counters().misbehaved == 3

    run(story())


def test_a_delayed_fault_strikes_later_and_not_after_the_stop() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        _, link = worker_of(broker, capacity=2)
        broker.script.add(misbehaviour(Fault.REVOKE_MID_JOB, delay_s=0.001))
        broker.script.add(misbehaviour(Fault.REVOKE_MID_JOB, delay_s=600))
        soon, late = broker.submit(b"{}"), broker.submit(b"{}")
        assert broker.job(soon).status is Status.RUNNING
        await broker.wait_terminal([soon], 5)
        await broker.close_all(1001, within_s=0.01)
        assert link.ends == [1001]
        assert broker.job(late).status is Status.RUNNING

    run(story())


def test_close_after_register_leaves_the_worker_unregistered() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        broker.script.add(misbehaviour(Fault.CLOSE_AFTER_REGISTER, code=1012))
        _, link = worker_of(broker)
        assert (link.ends, broker.workers()) == ([1012], [])

    run(story())


def test_connections_leave_their_trace_in_the_ledger() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig())
        number, _ = worker_of(broker)
        broker.disconnected(number, 1006)
        notes = [(entry.note, entry.code) for entry in broker.report().connections]
        assert notes == [(LinkNote.CONNECTED, 0), (LinkNote.REGISTERED, 0), (LinkNote.CLOSED, 1006)]
        assert broker.workers() == []

    run(story())


def test_a_lapse_found_by_the_sweep_is_dispatched_to_the_next_worker() -> None:
    async def story() -> None:
        broker = Broker(DevQueueConfig(lease_s=0.001))
        _, link = worker_of(broker)
        job_id = broker.submit(b"{}")
        broker.job(job_id).lease_until_s = 0.0
        broker.sweep()
        assert [frame["fence_token"] for frame in link.frames()] == [1, 2]

    run(story())
