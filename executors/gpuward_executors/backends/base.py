"""What a backend is: it turns the payload of a run into the JSON bytes of its result."""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec


class Work(msgspec.Struct, frozen=True, gc=False):
    """One run as a backend sees it."""

    #: Task name as the caller left it, may be empty.
    task: str
    #: The source's configuration id, echoed in results.
    config_id: str
    #: JSON of the payload, not parsed yet.
    payload: bytes


class Backend(ABC):
    """Does runs that take time."""

    @abstractmethod
    async def run(self, work: Work) -> bytes:
        """JSON of the result; cancelling the call gives the work up.

        Raises:
            JobRefused: the job is at fault.
            EngineFailed: the engine is at fault.
        """


class ImmediateBackend(ABC):
    """Does runs that take no time, without a task of the event loop for each."""

    @abstractmethod
    def answer(self, work: Work) -> bytes:
        """JSON of the result.

        Raises:
            JobRefused: the job is at fault.
        """
