"""The error tree of the development queue, split by who can act.

DevQueueError
├── ConfigurationError   the person who wrote the options
├── PortTaken            the person who started a second queue
├── NotRunning           the caller used a queue before start or after stop
├── UnknownJob           the caller asked for a job this queue does not hold
├── AlreadyTerminal      the caller tried to end a job that has ended
├── NoWorker             nobody has a free slot and the caller does not want to wait
└── StillWaiting         a wait of the caller ran out of time
"""

from __future__ import annotations


class DevQueueError(Exception):
    """Anything the development queue refuses or cannot do."""


class ConfigurationError(DevQueueError):
    """An option has a value the queue cannot run with."""


class PortTaken(DevQueueError):
    """The address to listen on cannot be bound."""


class NotRunning(DevQueueError):
    """The queue has not been started, or has been stopped."""


class UnknownJob(DevQueueError):
    """No job of this id is held (never submitted, or evicted)."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id!r} is not held by this queue; list what is with GET /jobs")
        self.job_id = job_id


class AlreadyTerminal(DevQueueError):
    """The job has ended and cannot be changed any more."""

    def __init__(self, job_id: str, status: str) -> None:
        super().__init__(f"job {job_id!r} is already {status}; only pending and running jobs can be revoked")
        self.job_id = job_id
        self.status = status


class NoWorker(DevQueueError):
    """No registered worker has a free slot for a job that may not wait."""


class StillWaiting(DevQueueError, TimeoutError):
    """What was waited for did not happen in time."""
