from __future__ import annotations

import json

import msgspec

from gpuward_devqueue.records import (
    ConnectionId,
    Job,
    JobId,
    Mode,
    Status,
    Worker,
    view_of_job,
    view_of_worker,
)


def a_job() -> Job:
    return Job(
        id=JobId("j"), mode=Mode.PERSISTED, payload=b'{"task":"t"}', config_id=None, seq=1, created_at_s=12.5
    )


def test_only_the_four_last_states_are_terminal() -> None:
    job = a_job()
    ended = []
    for status in Status:
        job.status = status
        if job.terminal:
            ended.append(status)
    assert ended == [Status.COMPLETED, Status.FAILED, Status.REVOKED, Status.TIMED_OUT]


def test_free_slots_are_what_capacity_leaves_and_none_while_paused() -> None:
    worker = Worker(connection=ConnectionId(1), worker_id="w", config_id="c", capacity=3)
    worker.active.add(JobId("a"))
    assert worker.free == 2
    worker.capacity = 0
    assert worker.free == 0
    worker.capacity, worker.paused = 3, True
    assert worker.free == 0


def test_a_job_is_shown_with_the_keys_of_the_protocol() -> None:
    job = a_job()
    job.result = b'{"a":[1,2]}'
    job.fence = 4
    shown = json.loads(msgspec.json.encode(view_of_job(job)))
    keys = ("id", "config_id", "status", "payload", "result", "error", "fence_token", "created_at")
    assert {key: shown[key] for key in keys} == {
        "id": "j",
        "config_id": None,
        "status": "pending",
        "payload": {"task": "t"},
        "result": {"a": [1, 2]},
        "error": None,
        "fence_token": 4,
        "created_at": 12.5,
    }


def test_a_worker_is_shown_with_the_number_of_its_jobs() -> None:
    worker = Worker(connection=ConnectionId(1), worker_id="w", config_id="c", capacity=3)
    worker.active.update({JobId("a"), JobId("b")})
    assert view_of_worker(worker).active == 2
