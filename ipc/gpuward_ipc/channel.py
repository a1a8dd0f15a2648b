"""The two ends of the executor link over ZeroMQ: a ROUTER in the supervisor, a DEALER in each executor.

Socket options, each for a reason that was measured: ``ROUTER_MANDATORY`` and non-blocking sends, because a
default ROUTER drops silently for unknown or slow peers; ``ROUTER_HANDOVER``, because a peer that comes back
under its old identity is otherwise ignored for ever; ``linger=0``, because ``term()`` hangs otherwise;
``ZAP_DOMAIN``, because it shuts out raw ZMTP 1.0 bytes; ``MAXMSGSIZE`` and a frame count check against
malformed peers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import zmq

from gpuward_ipc.codec import decode_from_executor, decode_from_supervisor, encode
from gpuward_ipc.endpoints import identity, parse_identity
from gpuward_ipc.errors import BackPressure, MalformedMessage
from gpuward_ipc.messages import FromExecutor, FromSupervisor
from gpuward_ipc.types import INLINE_BODY_MAX_BYTES, ExecutorName, Incarnation

#: Largest frame either side takes, in bytes: an inline body and then some.
FRAME_MAX_BYTES = INLINE_BODY_MAX_BYTES + 64 * 1024
#: Bodies from this size on are sent and received without a copy by pyzmq, in bytes.
ZERO_COPY_FROM_BYTES = 64 * 1024


class Received(msgspec.Struct, frozen=True, gc=False):
    """One message that an executor sent."""

    executor: ExecutorName
    incarnation: Incarnation
    message: FromExecutor
    #: Second frame, or None.
    body: bytes | None
    #: Pid of the sending process as the kernel knows it; 0 where it is not known. Only set for ``Hello``.
    peer_pid: int = 0


class ExecutorRouter:
    """The supervisor's end; owned by one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, window: int = 10_000) -> None:
        """Bind.

        Args:
            context: ZeroMQ context of the process.
            endpoint: ``ipc://`` path inside a directory of mode 0700.
            window: messages that may wait for one executor; must be more than its slots ever need.

        Raises:
            zmq.ZMQError: the endpoint cannot be bound.
        """
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, window)
        self._socket.setsockopt(zmq.RCVHWM, window)
        self._socket.setsockopt(zmq.MAXMSGSIZE, FRAME_MAX_BYTES)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)
        self._socket.setsockopt(zmq.ZAP_DOMAIN, b"gpuward")
        before = os.umask(0o077)
        try:
            self._socket.bind(endpoint)
        finally:
            os.umask(before)
        #: Messages that were no messages of ours; shown in ``status``.
        self.malformed = 0

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket, to poll on."""
        return self._socket

    def receive(self, limit: int = 256) -> Iterator[Received]:
        """Yield the messages that are ready, at most ``limit``; never blocks, skips malformed ones."""
        receive = self._socket.recv
        for _ in range(limit):
            try:
                sender = receive(zmq.NOBLOCK)
            except zmq.Again:
                return
            if not self._socket.getsockopt(zmq.RCVMORE):
                self.malformed += 1
                continue
            header = receive(zmq.NOBLOCK, copy=False)
            body: bytes | None = None
            more = 0
            while self._socket.getsockopt(zmq.RCVMORE):
                frame = receive(zmq.NOBLOCK)
                more += 1
                if more == 1:
                    body = frame
            who = parse_identity(sender)
            if who is None or more > 1:
                self.malformed += 1
                continue
            try:
                message = decode_from_executor(header.buffer)
            except MalformedMessage:
                self.malformed += 1
                continue
            peer_pid = _peer_pid(header) if body is None and type(message).__name__ == "Hello" else 0
            yield Received(who[0], who[1], message, body, peer_pid)

    def send(
        self,
        executor: ExecutorName,
        incarnation: Incarnation,
        message: FromSupervisor,
        body: bytes | None = None,
    ) -> bool:
        """Send a message; False when that incarnation is not connected (any more).

        Raises:
            BackPressure: its queue is full.
        """
        frames = [identity(executor, incarnation), encode(message)]
        if body is not None:
            frames.append(body)
        try:
            self._socket.send_multipart(
                frames, zmq.NOBLOCK, copy=body is None or len(body) < ZERO_COPY_FROM_BYTES
            )
        except zmq.Again as error:
            raise BackPressure(f"executor {executor}.{incarnation} does not read its messages") from error
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return False
            raise
        return True

    def close(self) -> None:
        """Close at once; unsent messages are dropped."""
        self._socket.close(0)


class SupervisorLink:
    """An executor's end; owned by its event loop."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        executor: ExecutorName,
        incarnation: Incarnation,
    ) -> None:
        """Connect (in the background)."""
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity(executor, incarnation))
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._socket.setsockopt(zmq.SNDHWM, 10_000)
        self._socket.setsockopt(zmq.RCVHWM, 10_000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, FRAME_MAX_BYTES)
        self._socket.connect(endpoint)
        #: Messages that were no messages of ours.
        self.malformed = 0

    def fileno(self) -> int:
        """Edge-triggered descriptor: after each wake-up *and after each send*, receive until nothing is left."""
        return int(self._socket.getsockopt(zmq.FD))

    def readable(self) -> bool:
        """True when a message waits. Call after every send: a send may swallow the edge of ``fileno``."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def receive(self, limit: int = 256) -> list[tuple[FromSupervisor, bytes | None]]:
        """Take the messages that are ready, at most ``limit``; never blocks, skips malformed ones."""
        taken: list[tuple[FromSupervisor, bytes | None]] = []
        while len(taken) < limit:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                if len(frames) > 2:
                    raise MalformedMessage(f"{len(frames)} frames, expected 1 or 2")
                message = decode_from_supervisor(frames[0])
            except MalformedMessage:
                self.malformed += 1
                continue
            taken.append((message, frames[1] if len(frames) == 2 else None))
        return taken

    def send(self, message: FromExecutor, body: bytes | None = None) -> None:
        """Send a message.

        Raises:
            BackPressure: the supervisor does not read.
        """
        try:
            if body is None:
                self._socket.send(encode(message), zmq.NOBLOCK)
            else:
                self._socket.send_multipart(
                    [encode(message), body], zmq.NOBLOCK, copy=len(body) < ZERO_COPY_FROM_BYTES
                )
        except zmq.Again as error:
            raise BackPressure("the supervisor does not read its messages") from error

    def flush_and_close(self, within_ms: int = 1000) -> None:
        """Close after what was sent has been handed to the kernel, waiting at most ``within_ms``.

        The context must be terminated right after: that is what waits.
        """
        self._socket.close(within_ms)


def _peer_pid(frame: zmq.Frame) -> int:
    """Pid of the sender from the kernel's peer credentials (``Peer-Address`` ends in ``:uid:gid:pid``)."""
    try:
        address = frame.get("Peer-Address")
        return int(str(address).rpartition(":")[2])
    except (zmq.ZMQError, ValueError, KeyError, TypeError):
        return 0
