"""What the supervisor's core wants done: the outputs of ``decide``. Imperative; plain frozen data.

No command returns anything into the decision: every outcome comes back as an event. The shell writes all
``Remember``/``Unremember`` commands of a turn in one transaction *before* it performs any other of them.
"""

from __future__ import annotations

import msgspec

from gpuward_ipc.types import ExecutorName, Fence, Incarnation, JobId, RunId, SourceName
from gpuward_supervisor.core.events import BodyId, ConnectionId, ReportSeq


class Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all commands."""


# ---------------------------------------------------------------- executors: processes


class Spawn(Command, frozen=True):
    """Start the process of this incarnation."""

    executor: ExecutorName
    incarnation: Incarnation


class Kill(Command, frozen=True):
    """Kill the process group of this incarnation now."""

    executor: ExecutorName
    incarnation: Incarnation
    reason: str


# ---------------------------------------------------------------- executors: link


class SendWelcome(Command, frozen=True):
    """Answer the hello of this incarnation."""

    executor: ExecutorName
    incarnation: Incarnation


class SendAssign(Command, frozen=True):
    """Give a run to this incarnation, with the body kept under ``body``."""

    executor: ExecutorName
    incarnation: Incarnation
    run: RunId
    job_id: JobId
    task: str
    config_id: str
    attempt: int
    body: BodyId
    transient: bool = False


class SendCancel(Command, frozen=True):
    """Tell this incarnation to give up a run."""

    executor: ExecutorName
    incarnation: Incarnation
    run: RunId
    reason: str


class SendAck(Command, frozen=True):
    """Tell this incarnation that the outcomes of these runs have arrived."""

    executor: ExecutorName
    incarnation: Incarnation
    runs: tuple[RunId, ...]


class SendStop(Command, frozen=True):
    """Tell this incarnation to stop its engine and leave."""

    executor: ExecutorName
    incarnation: Incarnation
    grace_s: float


class SendPulse(Command, frozen=True):
    """Tell this incarnation that the supervisor is alive."""

    executor: ExecutorName
    incarnation: Incarnation


# ---------------------------------------------------------------- sources


class Register(Command, frozen=True):
    """Offer this many slots to the queue; the first message on each connection."""

    source: SourceName
    connection: ConnectionId
    capacity: int


class Pause(Command, frozen=True):
    """Ask the queue for no more jobs for now."""

    source: SourceName
    connection: ConnectionId


class Resume(Command, frozen=True):
    """Take a ``Pause`` back."""

    source: SourceName
    connection: ConnectionId


class AnnounceDrain(Command, frozen=True):
    """Tell the queue that this node takes no more jobs for good."""

    source: SourceName
    connection: ConnectionId


class ReportResult(Command, frozen=True):
    """Send the result of a job, inline."""

    source: SourceName
    connection: ConnectionId
    seq: ReportSeq
    job_id: JobId
    fence: Fence
    body: BodyId


class ReportResultRef(Command, frozen=True):
    """Say that the result of a job lies at its upload URL."""

    source: SourceName
    connection: ConnectionId
    seq: ReportSeq
    job_id: JobId
    fence: Fence


class ReportError(Command, frozen=True):
    """Send the failure of a job."""

    source: SourceName
    connection: ConnectionId
    seq: ReportSeq
    job_id: JobId
    fence: Fence
    error: str


class ReportProgress(Command, frozen=True):
    """Send progress of a job, which is also the renewal of its lease."""

    source: SourceName
    connection: ConnectionId
    job_id: JobId
    fence: Fence
    #: 0..1, or None to leave it out.
    progress: float | None = None
    status_message: str | None = None


class FetchPayload(Command, frozen=True):
    """Download the payload of a job."""

    source: SourceName
    job_id: JobId
    fence: Fence
    url: str


class UploadResult(Command, frozen=True):
    """Upload the result body of a job."""

    source: SourceName
    job_id: JobId
    fence: Fence
    url: str
    body: BodyId


class AbandonTransfer(Command, frozen=True):
    """Stop a download or upload of a job whose outcome nobody wants any more."""

    source: SourceName
    job_id: JobId
    fence: Fence


class CloseSource(Command, frozen=True):
    """Flush what is queued for the source, within ``within_s`` seconds, then close its connection."""

    source: SourceName
    within_s: float


# ---------------------------------------------------------------- journal and bodies


class Remember(Command, frozen=True):
    """Make an owed report durable (replaces an earlier one of the same source and job)."""

    source: SourceName
    job_id: JobId
    fence: Fence
    #: Result body; None for an error report.
    body: BodyId | None
    error: str = ""
    result_upload_url: str = ""


class Unremember(Command, frozen=True):
    """Forget an owed report: delivered, superseded or revoked."""

    source: SourceName
    job_id: JobId


class ForgetBody(Command, frozen=True):
    """Free the bytes kept under this id."""

    body: BodyId


# ---------------------------------------------------------------- the node


class Note(Command, frozen=True):
    """Write one line to the log: a death, a retry, a change of state. Facts are plain scalars."""

    level: str
    event: str
    facts: dict[str, str | int | float | bool | None]


class Exit(Command, frozen=True):
    """End the supervisor with this exit code, everything else being done."""

    code: int
    reason: str


SupervisorCommand = (
    Spawn
    | Kill
    | SendWelcome
    | SendAssign
    | SendCancel
    | SendAck
    | SendStop
    | SendPulse
    | Register
    | Pause
    | Resume
    | AnnounceDrain
    | ReportResult
    | ReportResultRef
    | ReportError
    | ReportProgress
    | FetchPayload
    | UploadResult
    | AbandonTransfer
    | CloseSource
    | Remember
    | Unremember
    | ForgetBody
    | Note
    | Exit
)
