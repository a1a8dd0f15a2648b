"""What callers get, in shapes and statuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gpuward_devqueue.thread import DevQueueThread
from support.http_calls import Answer, call
from support.worker_client import Frame, WorkerClient

StartQueue = Any
CHAT = {"model": "default", "messages": [{"role": "user", "content": "hello"}]}


class Asking:
    """A request in flight, so that the test can be the worker meanwhile."""

    def __init__(self, method: str, url: str, body: object) -> None:
        self._answers: list[Answer] = []
        self._thread = threading.Thread(
            target=lambda: self._answers.append(call(method, url, body, timeout_s=20))
        )
        self._thread.start()

    def answer(self) -> Answer:
        self._thread.join(20)
        (answer,) = self._answers
        return answer


@contextmanager
def asked(
    queue: DevQueueThread, path: str, body: object, **worker: Any
) -> Iterator[tuple[WorkerClient, Frame, Asking]]:
    with WorkerClient.registered(queue.ws_url, **worker) as client:
        asking = Asking("POST", queue.http_url + path, body)
        yield client, client.receive_job(), asking
        asking.answer()


# ---------------------------------------------------------------------------- transient


def test_a_chat_call_becomes_a_transient_job_with_the_whole_body_and_the_task(queue: DevQueueThread) -> None:
    body = {**CHAT, "tools": [{"type": "function"}], "seed": 7, "stream": True}
    with asked(queue, "/v1/chat/completions", body) as (worker, job, asking):
        assert job["mode"] == "transient"
        assert job["payload"] == {**body, "task": "openai/chat-completion"}
        assert "result_upload_url" not in job
        completion = {"id": "x", "choices": [], "extra": 1}
        worker.result(job, {"status": "success", "completion": completion})
        answer = asking.answer()
    assert (answer.status, answer.json) == (200, completion)
    assert answer.headers["Content-Type"].startswith("application/json")


def test_a_chat_result_without_completion_is_returned_whole(queue: DevQueueThread) -> None:
    with asked(queue, "/v1/chat/completions", CHAT) as (worker, job, asking):
        worker.result(job, {"output": "hello"})
        assert asking.answer().json == {"output": "hello"}


def test_embeddings_come_in_openai_form(queue: DevQueueThread) -> None:
    body = {"model": "default", "input": ["a", "b"], "dimensions": 2}
    with asked(queue, "/v1/embeddings", body) as (worker, job, asking):
        assert job["payload"] == {**body, "task": "openai/embeddings"}
        found = [{"index": 0, "embedding": [0.1, 0.2]}, {"index": 1, "embedding": "YWJj"}]
        worker.result(job, {"embeddings": found, "prompt_tokens": 3, "total_tokens": 4})
        answer = asking.answer()
    assert answer.json == {
        "object": "list",
        "data": [
            {"index": 0, "embedding": [0.1, 0.2], "object": "embedding"},
            {"index": 1, "embedding": "YWJj", "object": "embedding"},
        ],
        "model": "default",
        "usage": {"prompt_tokens": 3, "total_tokens": 4},
    }


def test_an_embeddings_result_of_another_shape_is_returned_whole(queue: DevQueueThread) -> None:
    with asked(queue, "/v1/embeddings", {"model": "m", "input": "a"}) as (worker, job, asking):
        worker.result(job, ["surprise"])
        assert asking.answer().json == ["surprise"]


def test_without_a_worker_a_call_is_503(queue: DevQueueThread) -> None:
    answer = call("POST", queue.http_url + "/v1/chat/completions", CHAT)
    assert answer.status == 503
    assert answer.json["detail"] == answer.json["error"]["message"] == "No worker available"


@pytest.mark.parametrize("frame", ["pause", "drain"])
def test_a_worker_that_takes_nothing_is_no_worker(queue: DevQueueThread, frame: str) -> None:
    with WorkerClient.registered(queue.ws_url) as worker:
        worker.send({"type": frame})
        worker.barrier()
        assert call("POST", queue.http_url + "/v1/chat/completions", CHAT).status == 503


def test_without_a_free_slot_a_call_is_503(queue: DevQueueThread) -> None:
    with asked(queue, "/v1/chat/completions", CHAT) as (worker, job, _):
        assert call("POST", queue.http_url + "/v1/chat/completions", CHAT).status == 503
        worker.result(job)


def test_callers_may_wait_for_a_slot_where_that_is_wanted(start_queue: StartQueue) -> None:
    queue = start_queue(queue_transient=True)
    asking = Asking("POST", queue.http_url + "/v1/chat/completions", CHAT)
    queue.wait_until(lambda broker: broker.pending() == 1)
    with WorkerClient.registered(queue.ws_url) as worker:
        worker.result(worker.receive_job(), {"completion": {"id": "late"}})
        assert asking.answer().json == {"id": "late"}


def test_an_error_of_the_worker_is_502_with_its_text(queue: DevQueueThread) -> None:
    with asked(queue, "/v1/chat/completions", CHAT) as (worker, job, asking):
        worker.error(job, "Simulated GPU OOM")
        answer = asking.answer()
    assert (answer.status, answer.json["detail"]) == (502, "Simulated GPU OOM")


def test_no_answer_in_time_is_504(start_queue: StartQueue) -> None:
    queue = start_queue(timeout_s=0.05)
    with asked(queue, "/v1/chat/completions", CHAT) as (_, job, asking):
        answer = asking.answer()
    assert answer.status == 504
    assert answer.json["detail"] == f"Job {job['job_id']} timed out after 0.05s"
    assert queue.counters().lost == 1


def test_a_call_revoked_by_somebody_else_is_502(queue: DevQueueThread) -> None:
    with asked(queue, "/v1/chat/completions", CHAT) as (_, job, asking):
        queue.revoke(job["job_id"])
        assert asking.answer().status == 502


def test_a_model_that_a_worker_serves_by_name_goes_there(queue: DevQueueThread) -> None:
    with (
        WorkerClient.registered(queue.ws_url, "a", config_id="small", capacity=5) as other,
        asked(queue, "/v1/chat/completions", {**CHAT, "model": "big"}, name="b", config_id="big") as (
            worker,
            job,
            _,
        ),
    ):
        assert job["config_id"] == "big"
        assert other.barrier() == []
        worker.result(job)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "m"}),
        ("/v1/chat/completions", {"model": "m", "messages": "hello"}),
        ("/v1/chat/completions", [1]),
        ("/v1/chat/completions", b"{not json"),
        ("/v1/chat/completions", b'{"model":"m","messages":[],"user":"\xff"}'),
        ("/v1/embeddings", {"model": "m"}),
        ("/v1/embeddings", {"model": "m", "input": {"a": 1}}),
        ("/jobs", {"payload": "text"}),
        ("/jobs", {}),
        ("/misbehave", {"fault": "explode"}),
        ("/misbehave", {"fault": "close-mid-job", "code": "1011"}),
    ],
)
def test_a_body_that_makes_no_sense_is_422_with_a_reason(
    queue: DevQueueThread, path: str, body: object
) -> None:
    answer = call("POST", queue.http_url + path, body)
    assert answer.status == 422
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert answer.json["detail"]


def test_models_are_the_configs_of_the_workers(queue: DevQueueThread) -> None:
    assert call("GET", queue.http_url + "/v1/models").json == {"object": "list", "data": []}
    with WorkerClient.registered(queue.ws_url, "a"), WorkerClient.registered(queue.ws_url, "b"):
        models = call("GET", queue.http_url + "/v1/models").json["data"]
    assert models == [{"id": "default", "object": "model", "owned_by": "gpuward-devqueue"}]


# ---------------------------------------------------------------------------- persisted


def test_a_stored_job_can_be_followed_to_its_result(queue: DevQueueThread) -> None:
    made = call("POST", queue.http_url + "/jobs", {"payload": {"task": "custom/x", "a": 1}})
    assert (made.status, made.json["status"], made.json["fence_token"]) == (200, "pending", 0)
    url = f"{queue.http_url}/jobs/{made.json['id']}"
    with WorkerClient.registered(queue.ws_url) as worker:
        job = worker.receive_job()
        assert (job["mode"], job["payload"]) == ("persisted", {"task": "custom/x", "a": 1})
        assert call("GET", url).json["status"] == "running"
        worker.result(job, {"answer": 42})
        worker.barrier()
    done = call("GET", url).json
    assert (done["status"], done["result"], done["error"]) == ("completed", {"answer": 42}, None)
    assert (done["config_id"], done["payload"]) == ("default", {"task": "custom/x", "a": 1})


def test_an_unknown_job_is_404(queue: DevQueueThread) -> None:
    for method in ("GET", "DELETE"):
        assert call(method, queue.http_url + "/jobs/nobody").status == 404


def test_jobs_are_listed_and_filtered(queue: DevQueueThread) -> None:
    first, second = queue.submit_many([{}, {}])
    queue.revoke(first)

    def ids(query: str) -> list[str]:
        return [job["id"] for job in call("GET", f"{queue.http_url}/jobs{query}").json["jobs"]]

    assert ids("") == [first, second]
    assert ids("?status=revoked") == [first]
    assert ids("?limit=1") == [first]
    assert call("GET", queue.http_url + "/jobs?status=asleep").status == 422
    assert call("GET", queue.http_url + "/jobs?limit=-1").status == 422


@pytest.mark.parametrize(("method", "tail"), [("DELETE", ""), ("POST", "/revoke")])
def test_a_job_is_revoked_once(queue: DevQueueThread, method: str, tail: str) -> None:
    with WorkerClient.registered(queue.ws_url) as worker:
        job_id = queue.submit({})
        worker.receive_job()
        url = f"{queue.http_url}/jobs/{job_id}{tail}"
        assert call(method, url + "?reason=enough").json["status"] == "revoked"
        assert worker.receive() == {"type": "job_revoked", "job_id": job_id, "reason": "enough"}
        assert call(method, url).status == 409


# ---------------------------------------------------------------------------- operators


def test_health_shows_workers_and_the_line(queue: DevQueueThread) -> None:
    idle = call("GET", queue.http_url + "/health").json
    assert idle == {"status": "ok", "worker_connected": False, "pending_jobs": 0, "workers": []}
    with WorkerClient.registered(queue.ws_url):
        queue.submit_many([{}, {}])
        busy = call("GET", queue.http_url + "/health").json
    assert (busy["worker_connected"], busy["pending_jobs"]) == (True, 1)
    assert busy["workers"] == [
        {
            "worker_id": "w1",
            "config_id": "default",
            "capacity": 1,
            "active": 1,
            "paused": False,
            "draining": False,
        }
    ]


def test_the_ledger_is_readable_from_outside(queue: DevQueueThread) -> None:
    job_ids = queue.submit_many([{}, {}])
    whole = call("GET", queue.http_url + "/ledger").json
    assert (whole["counters"]["submitted"], whole["counters"]["open"]) == (2, 2)
    assert [list(whole["jobs"]), whole["connections"]] == [job_ids[::-1], []]
    one = call("GET", f"{queue.http_url}/ledger?job={job_ids[0]}").json
    assert [entry["note"] for entry in one["jobs"][job_ids[0]]] == ["submitted"]
    assert list(call("GET", queue.http_url + "/ledger?limit=1").json["jobs"]) == job_ids[1:]


def test_faults_are_scripted_from_outside(queue: DevQueueThread) -> None:
    url = queue.http_url + "/misbehave"
    made = call("POST", url, {"fault": "close-mid-job", "times": 2, "code": 1012}).json
    assert (made["fault"], made["times"], made["code"]) == ("close-mid-job", 2, 1012)
    call("POST", url, {"fault": "withhold-pong", "times": 0})
    assert [item["fault"] for item in call("GET", url).json] == ["close-mid-job", "withhold-pong"]
    assert [item["fault"] for item in call("DELETE", url + "?fault=withhold-pong").json] == ["close-mid-job"]
    assert call("DELETE", url + "?fault=explode").status == 422
    assert call("DELETE", url).json == []


def test_a_body_above_the_limit_is_413(start_queue: StartQueue) -> None:
    queue = start_queue(max_body_bytes=2000)
    assert call("POST", queue.http_url + "/jobs", {"payload": {"x": "y" * 2000}}).status == 413


def test_a_path_that_does_not_exist_is_404(queue: DevQueueThread) -> None:
    assert call("GET", queue.http_url + "/v2/everything").status == 404
