"""Both ends of the executor link over real sockets."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from gpuward_ipc import messages as m
from gpuward_ipc.channel import ExecutorRouter, Received, SupervisorLink
from gpuward_ipc.codec import encode
from gpuward_ipc.errors import BackPressure
from gpuward_ipc.types import ExecutorName, Incarnation, JobId, RunId

GPU0 = ExecutorName("gpu0")
ONE = Incarnation(1)

#: Makes an executor's end at an endpoint; the fixture closes it.
Connect = Callable[[str], SupervisorLink]
#: Makes a bare DEALER with an identity; the fixture closes it.
Dealer = Callable[[bytes], "zmq.Socket[bytes]"]


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(0)  # closes every socket that a test made


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/s"


@pytest.fixture
def router(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> Iterator[ExecutorRouter]:
    router = ExecutorRouter(context, endpoint)
    yield router
    router.close()


@pytest.fixture
def connect(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Connect]:
    made: list[SupervisorLink] = []

    def new(endpoint: str) -> SupervisorLink:
        made.append(SupervisorLink(context, endpoint, GPU0, ONE))
        return made[-1]

    yield new
    for link in made:
        link.flush_and_close(0)


@pytest.fixture
def link(connect: Connect, endpoint: str, router: ExecutorRouter) -> SupervisorLink:
    return connect(endpoint)


@pytest.fixture
def dealer(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> Iterator[Dealer]:
    made: list[zmq.Socket[bytes]] = []

    def new(name: bytes) -> zmq.Socket[bytes]:
        made.append(context.socket(zmq.DEALER))
        made[-1].setsockopt(zmq.IDENTITY, name)
        made[-1].connect(endpoint)
        return made[-1]

    yield new
    for end in made:
        end.close(0)


def received(router: ExecutorRouter, count: int = 1) -> list[Received]:
    messages: list[Received] = []
    while len(messages) < count:
        assert router.socket.poll(5000), f"only {len(messages)} of {count} messages came"
        messages.extend(router.receive())
    return messages


def taken(link: SupervisorLink, count: int) -> list[m.FromSupervisor]:
    messages: list[m.FromSupervisor] = []
    poller = zmq.Poller()
    poller.register(link.fileno(), zmq.POLLIN)
    while len(messages) < count:
        if not link.readable():
            assert poller.poll(5000), f"only {len(messages)} of {count} messages came"
        messages.extend(message for message, _ in link.receive())
    return messages


def test_hello_carries_the_kernels_word_for_the_pid(router: ExecutorRouter, link: SupervisorLink) -> None:
    link.send(m.Hello(GPU0, ONE, 1))
    (hello,) = received(router)
    assert (hello.executor, hello.incarnation, hello.peer_pid) == (GPU0, ONE, os.getpid())


def test_a_body_travels_as_a_frame_of_its_own(router: ExecutorRouter, link: SupervisorLink) -> None:
    body = b'{"x":"' + b"y" * 300_000 + b'"}'
    link.send(m.Succeeded(RunId(1), len(body)), body)
    (result,) = received(router)
    assert result.message == m.Succeeded(RunId(1), len(body))
    assert result.body == body


def test_answers_reach_the_incarnation_they_are_for(router: ExecutorRouter, link: SupervisorLink) -> None:
    link.send(m.Goodbye())
    received(router)
    assert router.send(GPU0, ONE, m.Assign(RunId(1), JobId("j"), ""), b"{}")
    assert router.send(GPU0, ONE, m.Pulse(1))
    assert taken(link, 2) == [m.Assign(RunId(1), JobId("j"), ""), m.Pulse(1)]


def test_sending_to_an_incarnation_that_is_not_there_says_so(router: ExecutorRouter) -> None:
    assert not router.send(GPU0, Incarnation(2), m.Pulse(1))


def test_a_deleted_socket_is_bound_again_and_old_connections_stand(
    router: ExecutorRouter, link: SupervisorLink, dealer: Dealer, endpoint: str
) -> None:
    link.send(m.Hello(GPU0, ONE, 1))
    received(router)
    assert not router.restore(), "nothing is missing"
    os.unlink(endpoint.removeprefix("ipc://"))
    assert router.restore()
    assert stat.S_IMODE(os.stat(endpoint.removeprefix("ipc://")).st_mode) & 0o077 == 0
    newcomer = dealer(b"gpu1.1")
    newcomer.send(encode(m.Hello(ExecutorName("gpu1"), ONE, 2)))
    assert [one.executor for one in received(router)] == ["gpu1"]
    assert router.send(GPU0, ONE, m.Pulse(7))
    assert taken(link, 1) == [m.Pulse(7)]


def test_a_socket_that_cannot_be_bound_again_is_an_error(router: ExecutorRouter, tmp_path: Path) -> None:
    (tmp_path / "s").unlink()
    tmp_path.rmdir()
    with pytest.raises(OSError, match="cannot be bound again"):
        router.restore()
    tmp_path.mkdir()


def test_a_peer_that_does_not_read_is_an_error_and_nothing_is_dropped(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, connect: Connect
) -> None:
    router = ExecutorRouter(context, f"ipc://{tmp_path}/narrow", window=10)
    link = connect(f"ipc://{tmp_path}/narrow")
    link.send(m.Goodbye())
    received(router)
    sent = 0
    with suppress(BackPressure):
        while sent < 100_000:
            router.send(GPU0, ONE, m.Pulse(sent), b"x" * 50_000)
            sent += 1
    assert sent < 100_000, "the queue has no end"
    assert len(taken(link, sent)) == sent
    router.close()


def test_a_successor_with_the_same_identity_takes_over(
    router: ExecutorRouter, link: SupervisorLink, connect: Connect, endpoint: str
) -> None:
    link.send(m.Heartbeat(1))
    received(router)
    again = connect(endpoint)
    again.send(m.Heartbeat(2))
    assert [r.message for r in received(router)] == [m.Heartbeat(2)]
    router.send(GPU0, ONE, m.Pulse(5))
    assert taken(again, 1) == [m.Pulse(5)]


@pytest.mark.parametrize(
    "send",
    [
        lambda s: s.send(b""),
        lambda s: s.send(b"garbage"),
        lambda s: s.send_multipart([b""] * 50),
        lambda s: s.send_multipart([b"\x91\xa7Goodbye", b"body", b"one too many"]),
    ],
    ids=["empty", "garbage", "fifty frames", "three frames"],
)
def test_malformed_messages_are_counted_and_the_next_one_is_read(
    router: ExecutorRouter,
    dealer: Dealer,
    send: Callable[[zmq.Socket[bytes]], None],
) -> None:
    peer = dealer(b"gpu0.1")
    send(peer)
    peer.send(b"\x91\xa7Goodbye")
    assert [r.message for r in received(router)] == [m.Goodbye()]
    assert router.malformed == 1


def test_a_stranger_is_counted(router: ExecutorRouter, dealer: Dealer) -> None:
    dealer(b"who-am-i").send(b"\x91\xa7Goodbye")
    friend = dealer(b"gpu0.1")
    while router.malformed == 0:
        assert router.socket.poll(5000)
        assert list(router.receive()) == []
    friend.send(b"\x91\xa7Goodbye")
    assert len(received(router)) == 1


def test_raw_bytes_without_a_handshake_never_become_a_message(
    router: ExecutorRouter, link: SupervisorLink, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(tmp_path / "s"))
        raw.sendall(b"\x01\x00\x07\x00gpu0.9")  # a ZMTP 1.0 peer's greeting and message
        link.send(m.Heartbeat(1))
        assert [r.message for r in received(router)] == [m.Heartbeat(1)]
        raw.settimeout(5)
        while raw.recv(100):  # the server hangs up
            pass
    assert router.malformed == 0


def test_the_socket_is_for_the_owner_alone(router: ExecutorRouter, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) & 0o077 == 0
