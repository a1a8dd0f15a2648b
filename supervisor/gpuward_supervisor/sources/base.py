"""What a job source is to the rest of the supervisor: its settings, its commands, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from gpuward_ipc.types import SourceName
from gpuward_supervisor.bodies import SpoolFile
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core.events import BodyId, SupervisorEvent
from gpuward_supervisor.secrets import Secret

#: Commands that a source takes.
SourceCommand = (
    do.Register
    | do.Pause
    | do.Resume
    | do.AnnounceDrain
    | do.ReportResult
    | do.ReportResultRef
    | do.ReportError
    | do.ReportProgress
    | do.FetchPayload
    | do.UploadResult
    | do.AbandonTransfer
    | do.CloseSource
)

#: Takes one event to the loop; called on any thread, never blocks.
Post = Callable[[SupervisorEvent], None]
#: The same for several at once, which wakes the loop only once.
PostAll = Callable[[Sequence[SupervisorEvent]], None]


class BodyStore(Protocol):
    """Where a source puts payloads and finds results; safe to use from any thread."""

    def put(self, data: bytes) -> BodyId:
        """Keep bytes."""

    def put_file(self, path: Path, size_bytes: int) -> BodyId:
        """Keep a file, which becomes the store's own."""

    def get(self, body: BodyId) -> bytes | SpoolFile | None:
        """What is kept under this id; None when it was forgotten."""

    def new_spool_path(self) -> Path:
        """A file name that nothing else uses; the caller makes the file."""


class TransferSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How payloads and results travel through presigned URLs. Times in seconds, sizes in bytes."""

    #: Longest silence of the other side in a download, and in an upload.
    get_timeout_s: float = 30.0
    put_timeout_s: float = 60.0
    #: Bound of one try from its connect to its end.
    deadline_s: float = 300.0
    #: Tries in all.
    attempts: int = 4
    #: Wait after the first failed try; doubles, with 0–30 % jitter.
    backoff_first_s: float = 0.5
    backoff_max_s: float = 8.0
    max_bytes: int = 1024 * 1024 * 1024
    #: Transfers at the same time; further ones wait for their turn.
    concurrency: int = 4


class CasolaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One connection to a Casola queue. Times in seconds, sizes in bytes."""

    #: Address of the queue, for example ``wss://queue.example``; ``/ws`` is appended.
    url: str
    #: Which model configuration this node serves.
    config_id: str
    #: Who this node is to the queue.
    worker_id: str
    #: Sent as a bearer token; not at all when empty.
    token: Secret = Secret("")
    name: SourceName = SourceName("casola")
    #: A longer message is refused for its job alone; the connection stays.
    inbound_max_bytes: int = 64 * 1024 * 1024
    open_timeout_s: float = 10.0
    close_timeout_s: float = 1.0
    ping_interval_s: float = 30.0
    pong_timeout_s: float = 10.0
    backoff_first_s: float = 1.0
    backoff_max_s: float = 60.0
    #: Largest random share added to a delay, 0..1.
    backoff_jitter: float = 0.3
    #: The delays start anew only after a connection that lived this long, or brought a job and read a report.
    proven_after_s: float = 30.0
    #: Least time between two delivery barriers: a ping behind reports, whose pong proves that they were read.
    barrier_interval_s: float = 0.02
    transfers: TransferSettings = TransferSettings()


class SourceState(StrEnum):
    """What a source is doing."""

    #: Between two tries to connect.
    WAITING = "waiting"
    #: Connecting; nothing is open yet.
    DIALLING = "dialling"
    #: A connection is open.
    OPEN = "open"
    #: Told to close; the last reports are on their way.
    CLOSING = "closing"
    #: Ended, as told or by a failure.
    ENDED = "ended"


class SourceSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A source at one moment, for status output and metrics. Counts are since its start."""

    source: SourceName
    state: SourceState
    #: Number of the latest connection, 0 before the first.
    connection: int
    connect_failures: int
    #: The queue answered the latest try with 401 or 403: the token is wrong or lacks rights.
    auth_refused: bool
    auth_refusals: int
    jobs_received: int
    #: Jobs answered with a refusal here, because they were too large or could not be spooled.
    jobs_refused: int
    #: Messages that meant nothing to us.
    frames_ignored: int
    reports_written: int
    #: Commands that came for a connection that was gone, or whose body was forgotten meanwhile.
    commands_dropped: int
    barriers_passed: int
    unwritten_bytes: int
    transfers_running: int
    #: Why there is no connection, or why there was none before this one.
    last_error: str


class Source(Protocol):
    """A source of jobs, running on threads of its own."""

    def start(self) -> None:
        """Begin to connect."""

    def send(self, command: SourceCommand) -> None:
        """Hand a command over; any thread, never blocks."""

    def join(self, timeout_s: float) -> bool:
        """Wait for the end that ``CloseSource`` brings; whether it came within ``timeout_s`` seconds."""

    def snapshot(self) -> SourceSnapshot:
        """Counters and state; any thread."""
