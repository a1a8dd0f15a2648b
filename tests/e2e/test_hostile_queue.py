"""A live node against a queue that sends what no queue should: it answers what it can and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.node import Node
from support.scripted_queue import TEXT, QueueConnection, ScriptedQueue, frame, job_message

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CANARY = "Signature-nobody-may-see"
UNREADABLE = [
    rb'{"x":"half an emoji \ud83d"}',
    b'{"x":NaN}',
    b"[" * 100_000 + b"]" * 100_000,
]
NOWHERE = [
    "file:///etc/passwd",
    "http://a..b/x",
    "http://" + "a" * 300 + "/x",
    "http://[::1/x",
    "http://localhost:99999/x",
    "http://localhost/a\r\nb",
    "key",
]


def answer(connection: QueueConnection, job_id: str) -> dict[str, object]:
    while True:
        message: dict[str, object] = connection.next()
        if message.get("job_id") == job_id and message["type"] != "job_progress":
            return message


def test_a_hostile_queue_gets_its_answers_and_the_node_lives(tmp_path: Path) -> None:
    token = {"CASOLA_API_TOKEN": CANARY}
    with (
        ScriptedQueue() as queue,
        Node(tmp_path / "n", queue.url, engine='kind = "echo"', executors=1, environment=token) as node,
    ):
        node.wait_ready(1)
        connection = queue.accept()
        assert connection.headers["authorization"] == f"Bearer {CANARY}"
        for number, payload in enumerate(UNREADABLE):
            text = b'{"type":"job","job_id":"p%d","mode":"persisted","payload":%b,"fence_token":7}'
            connection.send_text(text % (number, payload))
            refusal = answer(connection, f"p{number}")
            assert (refusal["type"], refusal["fence_token"]) == ("job_error", 7)
        # More of them than there are transfers at a time: none may block its place.
        for number, url in enumerate(NOWHERE):
            job = job_message(f"u{number}", payload_url=f"{url}?{CANARY}")
            del job["payload"]
            connection.send(job)
            refusal = answer(connection, f"u{number}")
            assert refusal["type"] == "job_error"
            assert CANARY not in str(refusal)
        flood = [
            b'{"type":"job","job_id":"f%d","payload":{},"fence_token":1}' % number for number in range(3000)
        ]
        connection.send_raw(b"".join(frame(TEXT, text) for text in flood))
        flooded = {message["job_id"] for message in (connection.next() for _ in flood)}
        assert len(flooded) == len(flood), "each is answered once"
        connection.send(job_message("last"))
        assert answer(connection, "last")["type"] == "job_result"
        assert node.stop() == 0
        assert CANARY not in json.dumps(node.lines)
