"""Messages of executors become events, assignments become messages; impostors and bad files are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from gpuward_ipc import messages as m
from gpuward_ipc.channel import ExecutorRouter, SupervisorLink
from gpuward_ipc.types import INLINE_BODY_MAX_BYTES, ExecutorName, Fault, Incarnation, JobId, RunId
from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.core import events as e
from gpuward_supervisor.core.commands import SendAssign
from gpuward_supervisor.core.events import BodyId
from gpuward_supervisor.executor_link import ExecutorLink

GPU0 = ExecutorName("gpu0")
ONE = Incarnation(1)


class Wire:
    """A supervisor's link with one executor's end connected to it."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = ExecutorRouter(self.context, f"ipc://{folder}/s")
        self.executor = SupervisorLink(self.context, f"ipc://{folder}/s", GPU0, ONE)
        self.bodies = Bodies(folder / "spool")
        self.spool = folder / "gpu0.1"
        self.spool.mkdir()
        self.pid: int | None = os.getpid()
        self.link = ExecutorLink(self.router, self.bodies, lambda *_: self.pid, lambda *_: self.spool)

    def send(self, message: m.FromExecutor, body: bytes | None = None) -> None:
        self.executor.send(message, body)

    def event(self) -> e.SupervisorEvent:
        events: list[e.SupervisorEvent] = []
        while not events:
            assert self.router.socket.poll(5000)
            events = self.link.receive()
        assert len(events) == 1
        return events[0]

    def no_event(self) -> bool:
        assert self.router.socket.poll(5000)
        return self.link.receive() == []

    def close(self) -> None:
        self.executor.flush_and_close(0)
        self.router.close()
        self.context.destroy(0)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    yield wire
    wire.close()


WHO = {"executor": GPU0, "incarnation": ONE}


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (m.Ready(4, "0.32.0"), e.ExecutorReady(**WHO, slots=4, engine_version="0.32.0")),
        (
            m.Heartbeat(3, (RunId(1),), 4, "ready"),
            e.ExecutorBeat(**WHO, seq=3, runs=(RunId(1),), slots=4, phase="ready"),
        ),
        (m.Failed(RunId(1), "no", Fault.JOB), e.RunFailed(**WHO, run=RunId(1), error="no", fault=Fault.JOB)),
        (m.Cancelled(RunId(1)), e.RunCancelled(**WHO, run=RunId(1))),
        (
            m.Progressed(RunId(1), 0.5, "half"),
            e.RunProgressed(**WHO, run=RunId(1), progress=0.5, status_message="half"),
        ),
        (m.EngineExited(None, 11, "segv", True), e.EngineDied(**WHO, detail="segv", permanent=True)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_messages_become_events(wire: Wire, message: m.FromExecutor, event: e.SupervisorEvent) -> None:
    wire.send(message)
    assert wire.event() == event


def test_goodbye_is_left_to_the_exit_of_the_process(wire: Wire) -> None:
    wire.send(m.Goodbye())
    assert wire.no_event()


def test_hello_of_the_spawned_process_connects_it(wire: Wire) -> None:
    wire.send(m.Hello(GPU0, ONE, os.getpid(), version="0.1.0"))
    assert wire.event() == e.ExecutorConnected(**WHO, version="0.1.0")


@pytest.mark.parametrize("pid", [None, 1])
def test_hello_of_another_process_is_an_impostor(wire: Wire, pid: int | None) -> None:
    wire.pid = pid
    wire.send(m.Hello(GPU0, ONE, 1))
    assert wire.no_event()
    assert wire.link.impostors == 1


def test_hello_under_a_false_name_is_an_impostor(wire: Wire) -> None:
    wire.send(m.Hello(ExecutorName("gpu1"), ONE, os.getpid()))
    assert wire.no_event()


def test_hello_with_another_protocol_says_what_to_do(wire: Wire) -> None:
    wire.send(m.Hello(GPU0, ONE, os.getpid(), protocol=99, version="9.9"))
    event = wire.event()
    assert isinstance(event, e.ExecutorRefused)
    assert "99" in event.error and "same gpuward version" in event.error


def test_a_result_is_kept_as_a_body(wire: Wire) -> None:
    wire.send(m.Succeeded(RunId(1), 2), b"{}")
    event = wire.event()
    assert isinstance(event, e.RunSucceeded)
    assert wire.bodies.get(event.body) == b"{}"


def test_a_result_file_is_taken_over(wire: Wire) -> None:
    (wire.spool / "1.json").write_bytes(b"[1]")
    wire.send(m.Succeeded(RunId(1), 3, str(wire.spool / "1.json")))
    event = wire.event()
    assert isinstance(event, e.RunSucceeded)
    assert wire.bodies.read(event.body) == b"[1]"
    assert not (wire.spool / "1.json").exists()


def test_a_result_file_outside_the_executors_folder_is_not_touched(wire: Wire, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"123")
    wire.send(m.Succeeded(RunId(1), 3, str(tmp_path / "secret")))
    event = wire.event()
    assert isinstance(event, e.RunFailed) and event.fault is Fault.ENGINE
    assert (tmp_path / "secret").exists()


def test_a_result_without_a_body_is_a_failed_run(wire: Wire) -> None:
    wire.send(m.Succeeded(RunId(1), 3))
    event = wire.event()
    assert isinstance(event, e.RunFailed)


def assign(wire: Wire, body: BodyId) -> bool:
    return wire.link.assign(
        SendAssign(
            **WHO,
            run=RunId(7),
            job_id=JobId("j"),
            task="t",
            config_id="c",
            attempt=2,
            body=body,
            transient=True,
        )
    )


def connected(wire: Wire) -> None:
    wire.send(m.Goodbye())
    wire.no_event()


def taken(wire: Wire) -> tuple[m.FromSupervisor, bytes | None]:
    poller = zmq.Poller()
    poller.register(wire.executor.fileno(), zmq.POLLIN)
    while not wire.executor.readable():
        assert poller.poll(5000)
    (message,) = wire.executor.receive()
    return message


def test_a_small_payload_travels_as_a_frame(wire: Wire) -> None:
    connected(wire)
    assert assign(wire, wire.bodies.put(b'{"a":1}'))
    assert taken(wire) == (m.Assign(RunId(7), JobId("j"), "t", "c", 2, "", 7, True), b'{"a":1}')


def test_a_large_payload_travels_as_a_file_name(wire: Wire) -> None:
    connected(wire)
    payload = b"x" * (INLINE_BODY_MAX_BYTES + 1)
    assert assign(wire, wire.bodies.put(payload))
    message, frame = taken(wire)
    assert isinstance(message, m.Assign) and frame is None
    assert message.body_bytes == len(payload)
    assert Path(message.body_path).read_bytes() == payload


def test_a_spooled_payload_travels_as_its_file_name(wire: Wire) -> None:
    connected(wire)
    path = wire.bodies.new_spool_path()
    path.write_bytes(b"{}")
    assert assign(wire, wire.bodies.put_file(path, 2))
    message, _ = taken(wire)
    assert isinstance(message, m.Assign)
    assert (message.body_path, message.body_bytes) == (str(path), 2)


def test_a_payload_that_is_gone_is_not_sent(wire: Wire) -> None:
    connected(wire)
    assert not assign(wire, BodyId(404))


def test_an_executor_that_is_gone_is_not_sent_to(wire: Wire) -> None:
    assert not wire.link.send(GPU0, Incarnation(9), m.Pulse(1))
