from __future__ import annotations

import asyncio
import json

import pytest

from gpuward_executors.backends.base import Work
from gpuward_executors.backends.vllm import chat
from gpuward_executors.backends.vllm.backend import VllmBackend
from gpuward_executors.errors import JobRefused


class RecordingEngine:
    """Answers with what it is given and keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[tuple[str, bytes]] = []

    async def post(self, path: str, body: bytes) -> bytes:
        self.asked.append((path, body))
        return self.answer


def test_a_run_asks_the_engine_once_and_makes_the_result() -> None:
    engine = RecordingEngine(b'{"id":"i","choices":[{"message":{"content":"x"}}]}')
    backend = VllmBackend(engine, chat.FAMILY, "served")
    result = json.loads(asyncio.run(backend.run(Work("", "cfg", b'{"messages":[1]}'))))
    [(path, body)] = engine.asked
    assert path == "/v1/chat/completions"
    assert json.loads(body)["model"] == "served"
    # A payload that names no task is told the task it was done as.
    assert (result["task"], result["config_id"], result["completion"]["id"]) == (chat.TASK, "cfg", "i")


def test_a_bad_payload_never_reaches_the_engine() -> None:
    engine = RecordingEngine(b"")
    with pytest.raises(JobRefused):
        asyncio.run(VllmBackend(engine, chat.FAMILY, "served").run(Work("", "cfg", b"nonsense")))
    assert engine.asked == []
