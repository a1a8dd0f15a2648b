"""Bytes to messages and back; the only place that knows the wire form of the executor link."""

from __future__ import annotations

import msgspec

from gpuward_ipc.errors import MalformedMessage
from gpuward_ipc.messages import FromExecutor, FromSupervisor

_encoder = msgspec.msgpack.Encoder()
_from_executor: msgspec.msgpack.Decoder[FromExecutor] = msgspec.msgpack.Decoder(FromExecutor)
_from_supervisor: msgspec.msgpack.Decoder[FromSupervisor] = msgspec.msgpack.Decoder(FromSupervisor)

encode = _encoder.encode


def decode_from_executor(frame: bytes | memoryview) -> FromExecutor:
    """Decode the header frame of a message that an executor sent.

    Raises:
        MalformedMessage: the frame is not such a message.
    """
    try:
        return _from_executor.decode(frame)
    # Bad UTF-8 and deep nesting raise errors that are not msgspec's own.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not a message of an executor: {error}") from error


def decode_from_supervisor(frame: bytes | memoryview) -> FromSupervisor:
    """Decode the header frame of a message that the supervisor sent.

    Raises:
        MalformedMessage: the frame is not such a message.
    """
    try:
        return _from_supervisor.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not a message of the supervisor: {error}") from error
