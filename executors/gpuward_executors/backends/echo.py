"""The backend of the echo engine: the result is the payload, byte for byte."""

from __future__ import annotations

from gpuward_executors.backends.base import ImmediateBackend, Work


class EchoBackend(ImmediateBackend):
    """Answers every task."""

    def answer(self, work: Work) -> bytes:
        """The payload."""
        return work.payload
