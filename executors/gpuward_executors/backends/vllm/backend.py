"""A run of any task family against the executor's own engine."""

from __future__ import annotations

from typing import Protocol

from gpuward_executors.backends.base import Backend, Work
from gpuward_executors.backends.vllm.family import Context, TaskFamily, now_text, parse_payload


class Poster(Protocol):
    """What is needed of an HTTP client."""

    async def post(self, path: str, body: bytes) -> bytes:
        """Body of a successful answer.

        Raises:
            JobRefused: the engine refused the request.
            EngineFailed: the engine did not do it.
        """


class VllmBackend(Backend):
    """One task family of an OpenAI-compatible engine."""

    def __init__(self, http: Poster, family: TaskFamily, served_model: str) -> None:
        """Join a family with an engine.

        Args:
            http: asks the engine.
            family: what to ask, and what to make of the answer.
            served_model: name that requests carry as ``model``, whatever the payload says.
        """
        self._http = http
        self._family = family
        self._served_model = served_model

    async def run(self, work: Work) -> bytes:
        """Ask the engine once."""
        family = self._family
        request = family.request(parse_payload(work.payload), self._served_model)
        answer = await self._http.post(family.path, request)
        context = Context(work.config_id, family.task, self._served_model, now_text())
        return family.result(answer, context)
