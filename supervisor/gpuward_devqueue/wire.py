"""The frames of the queue's WebSocket, both ways, and how text becomes one of them.

Written from the protocol, not from the worker's code, so that each checks the other. Frames are compact JSON
objects in text messages. A worker's frame must have exactly the fields of its type; fields beyond those are
tolerated but reported, since nobody knows what the production queue does with them.
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

#: What can go wrong when bytes from outside are decoded: bad UTF-8 and deep nesting are not MsgspecErrors.
DECODE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


class WireError(Exception):
    """A frame is not of the protocol; the text is what the worker is told."""


# ---------------------------------------------------------------------------- worker → queue


class Register(msgspec.Struct, frozen=True, tag="register"):
    """First frame of every connection; again on the same connection to change the capacity."""

    worker_id: str
    config_id: str
    capacity: int


class JobResult(msgspec.Struct, frozen=True, tag="job_result"):
    """A job's result, inline; any JSON."""

    job_id: str
    result: Raw
    fence_token: int


class JobResultRef(msgspec.Struct, frozen=True, tag="job_result_ref"):
    """A job's result has been uploaded to its ``result_upload_url``."""

    job_id: str
    fence_token: int


class JobError(msgspec.Struct, frozen=True, tag="job_error"):
    """A job has failed."""

    job_id: str
    error: str
    fence_token: int


class JobProgress(msgspec.Struct, frozen=True, tag="job_progress"):
    """A job is alive: progress and renewal of the lease in one; keys without a value are left out."""

    job_id: str
    fence_token: int
    progress: float | UnsetType | None = UNSET
    status_message: str | UnsetType | None = UNSET


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Send this worker no more jobs."""


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Send this worker no jobs for now."""


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Send this worker jobs again."""


WorkerFrame = Register | JobResult | JobResultRef | JobError | JobProgress | Drain | Pause | Resume


class _ExactRegister(Register, frozen=True, tag="register", forbid_unknown_fields=True):
    pass


class _ExactJobResult(JobResult, frozen=True, tag="job_result", forbid_unknown_fields=True):
    pass


class _ExactJobResultRef(JobResultRef, frozen=True, tag="job_result_ref", forbid_unknown_fields=True):
    pass


class _ExactJobError(JobError, frozen=True, tag="job_error", forbid_unknown_fields=True):
    pass


class _ExactJobProgress(JobProgress, frozen=True, tag="job_progress", forbid_unknown_fields=True):
    pass


class _ExactDrain(Drain, frozen=True, tag="drain", forbid_unknown_fields=True):
    pass


class _ExactPause(Pause, frozen=True, tag="pause", forbid_unknown_fields=True):
    pass


class _ExactResume(Resume, frozen=True, tag="resume", forbid_unknown_fields=True):
    pass


_ExactFrame = (
    _ExactRegister
    | _ExactJobResult
    | _ExactJobResultRef
    | _ExactJobError
    | _ExactJobProgress
    | _ExactDrain
    | _ExactPause
    | _ExactResume
)

_exact = msgspec.json.Decoder(_ExactFrame)
_tolerant = msgspec.json.Decoder(WorkerFrame)
_any_object = msgspec.json.Decoder(dict[str, Raw])
_TYPES = frozenset(
    {"register", "job_result", "job_result_ref", "job_error", "job_progress", "drain", "pause", "resume"}
)


class Received(msgspec.Struct, frozen=True):
    """A frame that can be acted on, and what was odd about it ("" = nothing)."""

    frame: WorkerFrame
    oddity: str = ""


def decode(text: str | bytes) -> Received:
    """Read one text message of a worker.

    Raises:
        WireError: it is not JSON, not an object, of no known type, or lacks what its type needs.
    """
    try:
        frame: WorkerFrame = _exact.decode(text)
    except DECODE_ERRORS as refusal:
        frame, oddity = _decode_tolerantly(text), str(refusal)
    else:
        oddity = ""
    match frame:
        case Register(capacity=capacity) if capacity < 0:
            raise WireError(f"register: capacity is {capacity}, expected 0 or more")
        case JobProgress(progress=None) | JobProgress(status_message=None):
            oddity = oddity or "job_progress: null where the key should be left out"
        case _:
            pass
    return Received(frame, oddity)


def _decode_tolerantly(text: str | bytes) -> WorkerFrame:
    try:
        frame: WorkerFrame = _tolerant.decode(text)
        return frame
    except DECODE_ERRORS as refusal:
        try:
            fields = _any_object.decode(text)
        except msgspec.ValidationError:
            raise WireError("Expected a JSON object") from None
        except DECODE_ERRORS:
            raise WireError("Invalid JSON") from None
        try:
            name = msgspec.json.decode(fields.get("type", Raw(b"null")), type=str)
        except DECODE_ERRORS:
            raise WireError("Missing message type") from None
        if name not in _TYPES:
            raise WireError(f"Unknown message type: {name[:80]}") from None
        raise WireError(f"{name}: {refusal}") from None


# ---------------------------------------------------------------------------- queue → worker


class JobFrame(msgspec.Struct, frozen=True, tag="job"):
    """Run this job. The URLs are there only when they are meant to be used."""

    job_id: str
    mode: str
    config_id: str
    payload: Raw
    fence_token: int
    payload_url: str | UnsetType = UNSET
    result_upload_url: str | UnsetType = UNSET


class JobRevoked(msgspec.Struct, frozen=True, tag="job_revoked"):
    """Drop this job; nobody wants its result."""

    job_id: str
    reason: str


class ResultRefEcho(msgspec.Struct, frozen=True, tag="job_result_ref"):
    """The uploaded result of this job has been taken."""

    job_id: str


class ErrorFrame(msgspec.Struct, frozen=True, tag="error"):
    """The worker's frame was not understood or not acceptable."""

    message: str


QueueFrame = JobFrame | JobRevoked | ResultRefEcho | ErrorFrame

_encoder = msgspec.json.Encoder()


def encode(frame: QueueFrame) -> bytes:
    """Return the text of a frame for a worker: compact JSON, ``type`` first."""
    return _encoder.encode(frame)
