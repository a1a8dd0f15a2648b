"""What can happen to the supervisor: the inputs of ``decide``. Past tense; plain frozen data, no I/O.

Bodies (payloads and results) never enter the core: an event carries a ``BodyId`` and a size, the shell
keeps the bytes (or the spool file) under that id until a ``ForgetBody`` command.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

import msgspec

from gpuward_ipc.types import ExecutorName, Fault, Fence, Incarnation, JobId, RunId, SourceName

#: Handle of bytes that the shell keeps for the core.
BodyId = NewType("BodyId", int)
#: Number of one connection of a source; rises with each connect.
ConnectionId = NewType("ConnectionId", int)
#: Number of one report handed to a source; rises over the life of the supervisor.
ReportSeq = NewType("ReportSeq", int)


class Mode(StrEnum):
    """How a job's caller waits."""

    #: A caller is blocked on a request: no lease, and no use for the answer after a while.
    TRANSIENT = "transient"
    #: Stored by the queue under a lease; the caller polls.
    PERSISTED = "persisted"


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all events."""


# ---------------------------------------------------------------- sources


class SourceConnected(Event, frozen=True):
    """A source's connection is open; nothing was sent on it yet."""

    source: SourceName
    connection: ConnectionId


class SourceDisconnected(Event, frozen=True):
    """A source's connection is gone; everything not known to be delivered counts as unsent."""

    source: SourceName
    connection: ConnectionId
    reason: str


class JobOffered(Event, frozen=True):
    """A source dispatched a job to this node."""

    source: SourceName
    connection: ConnectionId
    job_id: JobId
    fence: Fence
    mode: Mode
    task: str
    config_id: str
    #: Payload that came with the offer; None when it has to be fetched from ``payload_url``.
    body: BodyId | None
    body_bytes: int = 0
    payload_url: str = ""
    result_upload_url: str = ""
    #: Not empty when the offer cannot be run (payload too large, spool full …): the text for the caller.
    refusal: str = ""


class JobRevoked(Event, frozen=True):
    """The source takes a job back: stop it, report nothing."""

    source: SourceName
    job_id: JobId
    reason: str


class PayloadFetched(Event, frozen=True):
    """The payload of a job has been downloaded."""

    source: SourceName
    job_id: JobId
    fence: Fence
    body: BodyId
    body_bytes: int
    task: str


class PayloadFetchFailed(Event, frozen=True):
    """The payload of a job could not be downloaded, retries included."""

    source: SourceName
    job_id: JobId
    fence: Fence
    error: str


class ResultUploaded(Event, frozen=True):
    """A result body lies at its upload URL."""

    source: SourceName
    job_id: JobId
    fence: Fence


class ResultUploadFailed(Event, frozen=True):
    """A result body could not be uploaded, retries included."""

    source: SourceName
    job_id: JobId
    fence: Fence
    error: str


class ReportsDelivered(Event, frozen=True):
    """The peer's stack has read every report up to ``seq`` that was written on this connection."""

    source: SourceName
    connection: ConnectionId
    seq: ReportSeq


# ---------------------------------------------------------------- executors


class ExecutorSpawned(Event, frozen=True):
    """The process of an incarnation runs."""

    executor: ExecutorName
    incarnation: Incarnation
    pid: int


class ExecutorSpawnFailed(Event, frozen=True):
    """The process of an incarnation could not be started."""

    executor: ExecutorName
    incarnation: Incarnation
    error: str


class ExecutorConnected(Event, frozen=True):
    """An incarnation said hello, with the right protocol and pid."""

    executor: ExecutorName
    incarnation: Incarnation
    version: str = ""


class ExecutorRefused(Event, frozen=True):
    """An incarnation's hello was wrong (protocol version); it must be stopped."""

    executor: ExecutorName
    incarnation: Incarnation
    error: str


class ExecutorReady(Event, frozen=True):
    """The engine of an incarnation answers."""

    executor: ExecutorName
    incarnation: Incarnation
    slots: int
    engine_version: str = ""


class ExecutorBeat(Event, frozen=True):
    """A heartbeat of an incarnation's own loop."""

    executor: ExecutorName
    incarnation: Incarnation
    seq: int
    runs: tuple[RunId, ...]
    slots: int = 0
    phase: str = ""


class RunSucceeded(Event, frozen=True):
    """A run ended well; ``body`` is its result."""

    executor: ExecutorName
    incarnation: Incarnation
    run: RunId
    body: BodyId
    body_bytes: int


class RunFailed(Event, frozen=True):
    """A run failed on a living executor."""

    executor: ExecutorName
    incarnation: Incarnation
    run: RunId
    error: str
    fault: Fault


class RunCancelled(Event, frozen=True):
    """A run was given up as told."""

    executor: ExecutorName
    incarnation: Incarnation
    run: RunId


class RunProgressed(Event, frozen=True):
    """A run got further; ``progress`` is 0..1, negative when unknown."""

    executor: ExecutorName
    incarnation: Incarnation
    run: RunId
    progress: float
    status_message: str = ""


class EngineDied(Event, frozen=True):
    """An incarnation says that its engine is gone; its process follows at once."""

    executor: ExecutorName
    incarnation: Incarnation
    detail: str
    #: Trying again with the same configuration cannot help.
    permanent: bool = False


class ExecutorExited(Event, frozen=True):
    """The process of an incarnation is gone and its process group was killed."""

    executor: ExecutorName
    incarnation: Incarnation
    exit_code: int | None
    signal: int | None


class ExecutorSwept(Event, frozen=True):
    """Nothing of an incarnation is left: processes, shared memory, temporary files, sockets."""

    executor: ExecutorName
    incarnation: Incarnation
    #: Processes that outlived the group kill and had to be killed one by one.
    leftovers: int = 0


# ---------------------------------------------------------------- the node


class ResultRecovered(Event, frozen=True):
    """At start: the journal holds a result that an earlier supervisor still owed."""

    source: SourceName
    job_id: JobId
    fence: Fence
    #: Result body; None for an error report.
    body: BodyId | None
    body_bytes: int
    error: str
    result_upload_url: str = ""


class JournalFailed(Event, frozen=True):
    """The journal cannot be written; results are kept in memory only until it can."""

    error: str


class JournalRestored(Event, frozen=True):
    """The journal can be written again."""


class StopRequested(Event, frozen=True):
    """Somebody asked for an orderly stop (first SIGTERM or SIGINT)."""

    reason: str
    #: Seconds for running jobs to finish; the node's configured grace when None.
    grace_s: float | None = None


class StopNow(Event, frozen=True):
    """Somebody asked again: stop without waiting for jobs."""

    reason: str


class SourceClosed(Event, frozen=True):
    """A source has flushed what it could and ended, as it was told to by ``CloseSource``."""

    source: SourceName


class SourceFailed(Event, frozen=True):
    """A source ended for good by itself and cannot come back."""

    source: SourceName
    error: str


class Ticked(Event, frozen=True):
    """A deadline of the state has come; carries nothing, the time comes beside the event."""


SupervisorEvent = (
    SourceConnected
    | SourceDisconnected
    | JobOffered
    | JobRevoked
    | PayloadFetched
    | PayloadFetchFailed
    | ResultUploaded
    | ResultUploadFailed
    | ReportsDelivered
    | ExecutorSpawned
    | ExecutorSpawnFailed
    | ExecutorConnected
    | ExecutorRefused
    | ExecutorReady
    | ExecutorBeat
    | RunSucceeded
    | RunFailed
    | RunCancelled
    | RunProgressed
    | EngineDied
    | ExecutorExited
    | ExecutorSwept
    | ResultRecovered
    | JournalFailed
    | JournalRestored
    | StopRequested
    | StopNow
    | SourceClosed
    | SourceFailed
    | Ticked
)
