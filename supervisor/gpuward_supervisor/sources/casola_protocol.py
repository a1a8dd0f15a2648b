"""The Casola queue's messages as bytes: what comes in as typed values, what goes out in its exact shapes.

Pure. Nothing that a queue sends raises here: what cannot be understood is ``Ignored`` with a reason. A
payload is never parsed beyond its task name, and a result is spliced into its message as it came.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from gpuward_supervisor.core.events import Mode

#: What the decoder may raise on bytes from outside: MsgspecError alone misses bad UTF-8 and deep nesting.
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)

_NO_PAYLOAD = msgspec.Raw(b"{}")
_Fence = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


# ---------------------------------------------------------------- queue → worker


class Job(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="job"):
    """A job is dispatched to this worker."""

    job_id: str | None = None
    mode: str | None = None
    config_id: str | None = None
    payload: msgspec.Raw = _NO_PAYLOAD
    fence_token: _Fence = 0
    payload_url: str | None = None
    result_upload_url: str | None = None


class Revoked(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="job_revoked"):
    """A job is taken back."""

    job_id: str
    reason: str | None = None


class ResultRefEcho(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="job_result_ref"):
    """The queue repeats our ``job_result_ref``; it proves nothing that the delivery barrier does not."""


class QueueError(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="error"):
    """The queue complains about something we sent."""

    message: msgspec.Raw = msgspec.Raw(b'""')


class Ignored(msgspec.Struct, frozen=True, gc=False):
    """A message that means nothing to us."""

    reason: str


class Unusable(msgspec.Struct, frozen=True, gc=False):
    """A job that is known by its ends only, so that it can be refused but not run."""

    job: Job
    reason: str


Inbound = Job | Revoked | ResultRefEcho | QueueError | Ignored | Unusable

_inbound: msgspec.json.Decoder[Job | Revoked | ResultRefEcho | QueueError] = msgspec.json.Decoder(
    Job | Revoked | ResultRefEcho | QueueError
)
_job = msgspec.json.Decoder(Job)

#: Longer ids and task names are refused, in characters: they travel in the header of an assignment, and one
#: that is too long for its frame would cut the executor's link, with the messages of other jobs on it.
NAME_MAX_CHARS = 4096

#: How much of a message's two ends is looked at when the whole cannot be decoded.
_END_BYTES = 8 * 1024
#: How many members are looked for at each end. A job has few; a message of nothing else must not cost much.
_END_MEMBERS_MAX = 32


def decode(message: bytes | bytearray) -> Inbound:
    """Understand one text message of the queue; never raises."""
    try:
        decoded = _inbound.decode(message)
    except RecursionError:
        return _by_its_ends(message, "the payload is nested too deeply to be read")
    except _MALFORMED as error:
        # A queue written in JavaScript passes on half a surrogate pair (an emoji that was cut in two), which
        # is no text to our decoder: say so to the caller instead of letting the job lapse.
        found = _by_its_ends(message, f"the payload is not readable as JSON: {error}")
        return found if isinstance(found, Unusable) else Ignored(f"{_kind_of(message)}: {error}")
    if isinstance(decoded, Job) and not decoded.job_id:
        return Ignored("a job without a job_id: it cannot be answered")
    return decoded


def _by_its_ends(message: bytes | bytearray, reason: str) -> Unusable | Ignored:
    return decode_ends(bytes(message[:_END_BYTES]), bytes(message[-_END_BYTES:]), reason)


def decode_ends(head: bytes, tail: bytes, reason: str) -> Unusable | Ignored:
    """Find out which job a message is about whose middle is missing.

    Only members of the outermost object count: those before the first value that is no scalar, and those
    after the last one. What a payload holds inside can therefore not pretend to be the job's id or fence.

    Args:
        head: first bytes of the message.
        tail: last bytes of the message; may overlap with ``head``.
        reason: why it cannot be run, for its caller.
    """
    members = _leading_members(head) + _trailing_members(tail)
    try:
        job = _job.decode(b"{" + b",".join(members) + b"}")
    except _MALFORMED as error:
        return Ignored(f"no job can be made out: {error}")
    if not job.job_id:
        return Ignored("no job_id can be made out")
    return Unusable(job, reason)


def mode_of(job: Job) -> Mode:
    """How the job's caller waits; anything unknown is taken as transient, as the queue's own worker does."""
    return Mode.PERSISTED if job.mode == Mode.PERSISTED else Mode.TRANSIENT


def error_text(error: QueueError) -> str:
    """The text of a queue's complaint, whatever its type."""
    try:
        return str(msgspec.json.decode(error.message))
    except _MALFORMED:
        return "(unreadable)"


_STRING = rb'"(?:[^"\\\x00-\x1f]|\\.)*"'
_SCALAR = rb"(?:" + _STRING + rb"|-?[0-9][0-9eE+.\-]*|true|false|null)"
_MEMBER = rb"\s*(" + _STRING + rb"\s*:\s*" + _SCALAR + rb")\s*"
_FIRST = re.compile(_MEMBER + rb",")
_LAST = re.compile(rb"," + _MEMBER + rb"$")


def _leading_members(head: bytes) -> list[bytes]:
    start = head.find(b"{") + 1
    if not start or head[: start - 1].strip():
        return []
    members: list[bytes] = []
    while len(members) < _END_MEMBERS_MAX and (found := _FIRST.match(head, start)):
        members.append(found.group(1))
        start = found.end()
    return members


def _trailing_members(tail: bytes) -> list[bytes]:
    rest = tail.rstrip()
    if not rest.endswith(b"}"):
        return []
    rest = rest[:-1]
    members: list[bytes] = []
    # Member by member from the end. A quote inside a string is escaped, so a match never starts in one.
    while len(members) < _END_MEMBERS_MAX and (found := _last_member(rest)):
        members.insert(0, found.group(1))
        rest = rest[: found.start()]
    return members


def _last_member(rest: bytes) -> re.Match[bytes] | None:
    # From the right: a search from the left would look at every member for each one that it finds.
    at = rest.rfind(b",")
    while at >= 0:
        if found := _LAST.match(rest, at):
            return found
        at = rest.rfind(b",", 0, at)
    return None


class _Kind(msgspec.Struct, frozen=True, gc=False):
    type: str


_kind = msgspec.json.Decoder(_Kind)


def _kind_of(message: bytes | bytearray) -> str:
    try:
        return f"message of type {_kind.decode(message).type[:64]!r}"
    except _MALFORMED:
        return f"message of {len(message)} bytes"


# ---------------------------------------------------------------- payloads


class _Task(msgspec.Struct, frozen=True, gc=False):
    task: str = ""


_task = msgspec.json.Decoder(_Task)
_anything = msgspec.json.Decoder(msgspec.Raw)


def peek_task(payload: bytes | msgspec.Raw | memoryview) -> str:
    """The ``task`` of a payload; empty when it is no object or its task is no string."""
    try:
        return _task.decode(payload).task
    except _MALFORMED:
        return ""


def names_fault(job: Job, task: str) -> str:
    """Why a job of these names cannot be given to an executor; empty when it can."""
    names = (("job id", job.job_id), ("config id", job.config_id), ("task name", task))
    for what, name in names:
        if name is not None and len(name) > NAME_MAX_CHARS:
            return f"the {what} has {len(name)} characters: at most {NAME_MAX_CHARS} are taken"
    return ""


def json_fault(data: bytes | memoryview) -> str:
    """Why these bytes are not one JSON value; empty when they are."""
    try:
        _anything.decode(data)
    except _MALFORMED as error:
        return str(error)
    return ""


# ---------------------------------------------------------------- worker → queue

DRAIN = b'{"type":"drain"}'
PAUSE = b'{"type":"pause"}'
RESUME = b'{"type":"resume"}'

_encode = msgspec.json.Encoder().encode


def register(worker_id: str, config_id: str, capacity: int) -> bytes:
    """Offer ``capacity`` slots; the first message on every connection."""
    return _encode({"type": "register", "worker_id": worker_id, "config_id": config_id, "capacity": capacity})


def result_ends(job_id: str, fence: int) -> tuple[bytes, bytes]:
    """What stands before and after the result's own bytes in a ``job_result``."""
    return b'{"type":"job_result","job_id":%b,"result":' % _text(job_id), b',"fence_token":%d}' % fence


def job_result(job_id: str, fence: int, result: bytes) -> bytes:
    """The result of a job, inline; ``result`` is one JSON value."""
    return b'{"type":"job_result","job_id":%b,"result":%b,"fence_token":%d}' % (_text(job_id), result, fence)


def job_result_ref(job_id: str, fence: int) -> bytes:
    """The result of a job lies at its upload URL."""
    return b'{"type":"job_result_ref","job_id":%b,"fence_token":%d}' % (_text(job_id), fence)


def job_error(job_id: str, fence: int, error: str) -> bytes:
    """The failure of a job."""
    return b'{"type":"job_error","job_id":%b,"error":%b,"fence_token":%d}' % (
        _text(job_id),
        _text(error),
        fence,
    )


def job_progress(
    job_id: str, fence: int, progress: float | None = None, status_message: str | None = None
) -> bytes:
    """Progress of a job (0..1), which also renews its lease; what is None is left out."""
    message = b'{"type":"job_progress","job_id":%b,"fence_token":%d' % (_text(job_id), fence)
    if progress is not None:
        message += b',"progress":%b' % _encode(progress)
    if status_message is not None:
        message += b',"status_message":%b' % _text(status_message)
    return message + b"}"


def _text(text: str) -> bytes:
    try:
        return _encode(text)
    except UnicodeEncodeError:
        # Half a surrogate pair, for example from a file name in an error text.
        return _encode(text.encode("utf-8", "replace").decode())
