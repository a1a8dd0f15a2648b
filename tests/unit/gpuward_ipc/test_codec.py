"""Wire form of the executor link: round trips, and every kind of garbage is one typed error."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuward_ipc import messages as m
from gpuward_ipc.codec import decode_from_executor, decode_from_supervisor, encode
from gpuward_ipc.errors import MalformedMessage
from gpuward_ipc.types import ExecutorName, Fault, Incarnation, JobId, RunId

FROM_EXECUTOR = [
    m.Hello(ExecutorName("gpu0"), Incarnation(3), 4711, version="0.1.0"),
    m.Ready(8, "0.32.0", 4712),
    m.Heartbeat(7, (RunId(1), RunId(2)), 8, "ready", 1 << 30),
    m.Succeeded(RunId(5), 12),
    m.Succeeded(RunId(5), 2_000_000, "/run/x/5.json"),
    m.Failed(RunId(5), "Error code: 400 - no", Fault.JOB),
    m.Cancelled(RunId(5)),
    m.Progressed(RunId(5), 0.5, "step 1"),
    m.EngineExited(None, 11, "segmentation fault"),
    m.Goodbye(),
]
FROM_SUPERVISOR = [
    m.Welcome(heartbeat_s=0.5),
    m.Assign(RunId(1), JobId("j"), "openai/embeddings", "default", 2, "", 10, True),
    m.Cancel(RunId(1), "revoked"),
    m.Ack((RunId(1), RunId(2))),
    m.Stop(3.0),
    m.Pulse(9),
]


@pytest.mark.parametrize("message", FROM_EXECUTOR, ids=lambda v: type(v).__name__)
def test_messages_of_executors_survive_the_wire(message: m.FromExecutor) -> None:
    assert decode_from_executor(encode(message)) == message


@pytest.mark.parametrize("message", FROM_SUPERVISOR, ids=lambda v: type(v).__name__)
def test_messages_of_the_supervisor_survive_the_wire(message: m.FromSupervisor) -> None:
    assert decode_from_supervisor(encode(message)) == message


def test_a_message_of_an_older_peer_lacks_the_newer_fields_and_still_decodes() -> None:
    older = msgspec.msgpack.encode(["Heartbeat", 3, [1]])
    assert decode_from_executor(older) == m.Heartbeat(3, (RunId(1),))


def test_a_message_of_a_newer_peer_has_more_fields_and_still_decodes() -> None:
    newer = msgspec.msgpack.encode(["Cancelled", 3, "a field of the future"])
    assert decode_from_executor(newer) == m.Cancelled(RunId(3))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"garbage",
        msgspec.msgpack.encode(["NoSuchMessage", 1]),
        msgspec.msgpack.encode(["Cancelled", "not a number"]),
        msgspec.msgpack.encode({"type": "Cancelled", "run": 1}),
        b"\x95\xa5Hello\xa2\xff\xfe\x01\x01\xa0",
        b"\x91" * 100_000,
    ],
)
def test_garbage_is_a_malformed_message_on_both_sides(frame: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_from_executor(frame)
    with pytest.raises(MalformedMessage):
        decode_from_supervisor(frame)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(frame: bytes) -> None:
    for decode in (decode_from_executor, decode_from_supervisor):
        try:
            decoded = decode(frame)
        except MalformedMessage:
            continue
        assert isinstance(decoded, m.Message)
