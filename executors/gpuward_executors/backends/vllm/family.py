"""What a task family is, and what all families share: payload in, common result fields out. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec

from gpuward_executors.backends.error_text import error_member, presentable
from gpuward_executors.errors import EngineFailed, JobRefused

#: A payload whose values are left as the caller wrote them, numbers to the last digit.
Payload = dict[str, msgspec.Raw]

_payloads = msgspec.json.Decoder(Payload)
_encode = msgspec.json.Encoder().encode
NULL = b"null"


class Context(msgspec.Struct, frozen=True, gc=False):
    """What a result says besides the engine's answer."""

    config_id: str
    task: str
    #: Name under which the engine serves its model.
    served_model: str
    #: Local time without zone, with microseconds, as the reference worker writes it.
    processed_at: str


class TaskFamily(msgspec.Struct, frozen=True):
    """How one kind of task goes through an OpenAI-compatible engine."""

    #: Task name in results.
    task: str
    #: Path of the engine's address.
    path: str
    #: (payload, served model) -> body of the engine's request. Raises ``JobRefused``.
    request: Callable[[Payload, str], bytes]
    #: (engine's answer, context) -> JSON of the result. Raises ``EngineFailed``.
    result: Callable[[bytes, Context], bytes]


class Result(msgspec.Struct, kw_only=True):
    """The fields that every result has."""

    status: str = "success"
    config_id: str
    task: str


def parse_payload(payload: bytes) -> Payload:
    """The payload's members.

    Raises:
        JobRefused: it is not a JSON object.
    """
    try:
        payload.decode("utf-8")  # values that are passed through raw are not looked at again
        return _payloads.decode(payload)
    except UnicodeDecodeError as error:
        raise JobRefused(f"The payload is not valid UTF-8: byte {error.start}") from error
    except msgspec.ValidationError as error:
        raise JobRefused(f"The payload must be a JSON object: {error}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise JobRefused(f"The payload is not valid JSON: {error}") from error
    except RecursionError as error:
        raise JobRefused("The payload is nested too deeply") from error


def present(payload: Payload, name: str) -> bool:
    """True when a member is there and not null."""
    value = payload.get(name)
    return value is not None and bytes(value) != NULL


def raw(value: object) -> msgspec.Raw:
    """A value as raw JSON."""
    return msgspec.Raw(_encode(value))


def encode_payload(payload: Payload) -> bytes:
    """JSON of a payload."""
    return _encode(payload)


def check_answer(answer: bytes) -> None:
    """Refuse what no family can use.

    Raises:
        EngineFailed: the answer carries an error in spite of its status, or is not UTF-8.
    """
    try:
        answer.decode("utf-8")  # bad bytes would break the connection to the queue
    except UnicodeDecodeError as error:
        raise EngineFailed("the engine answered with something that is not UTF-8") from error
    message = error_member(answer)
    if message:
        raise EngineFailed(presentable(f"the engine answered with an error: {message}"))


def unusable(error: Exception) -> EngineFailed:
    """The failure of an answer that cannot be decoded."""
    what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return EngineFailed(presentable(f"the engine answered with something that is no result: {what}"))


def now_text() -> str:
    """Local time as results carry it."""
    # The protocol's own form: no zone. Microseconds always, also when they are 0.
    return datetime.now().isoformat(timespec="microseconds")  # noqa: DTZ005
