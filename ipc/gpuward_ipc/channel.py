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
from gpuward_ipc.messages import FromExecutor, FromSupervisor, Hello
from gpuward_ipc.types import INLINE_BODY_MAX_BYTES, ExecutorName, Incarnation

#: Largest frame either side takes, in bytes: an inline body and then some.
FRAME_MAX_BYTES = INLINE_BODY_MAX_BYTES + 64 * 1024
#: Bodies from this size on are sent and received without a copy by pyzmq, in bytes.
ZERO_COPY_FROM_BYTES = 64 * 1024
#: Identities that are remembered before all are forgotten: strangers must not fill the memory.
_REMEMBERED_MAX = 1024
#: As plain ints: combining flag enums costs more than the call that they are for.
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


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
        self._endpoint = endpoint
        self._bind()
        #: Messages that were no messages of ours; shown in ``status``.
        self.malformed = 0
        self._senders: dict[bytes, tuple[ExecutorName, Incarnation]] = {}
        self._identities: dict[tuple[ExecutorName, Incarnation], bytes] = {}

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket, to poll on."""
        return self._socket

    def restore(self) -> bool:
        """Bind again where the socket's file was deleted: nobody new finds us without; True when it was so.

        Connections that stand are not touched.

        Raises:
            OSError: the endpoint cannot be bound any more.
        """
        if os.path.lexists(self._endpoint.removeprefix("ipc://")):
            return False
        # No unbind first: it ends in the background, and would then delete the file of the new binding.
        try:
            self._bind()
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"{self._endpoint} cannot be bound again: {error}") from error
        return True

    def _bind(self) -> None:
        before = os.umask(0o077)
        try:
            self._socket.bind(self._endpoint)
        finally:
            os.umask(before)

    def receive(self, limit: int = 256) -> Iterator[Received]:
        """Yield the messages that are ready, at most ``limit``; never blocks, skips malformed ones."""
        receive = self._socket.recv
        for _ in range(limit):
            try:
                sender = receive(_NOBLOCK, copy=False)
            except zmq.Again:
                return
            if not sender.more:
                self.malformed += 1
                continue
            header = receive(_NOBLOCK, copy=False)
            body: bytes | None = None
            extra, last = 0, header
            while last.more:
                last = receive(_NOBLOCK, copy=False)
                extra += 1
                if extra == 1:
                    body = last.bytes
            who = self._who(sender.bytes)
            if who is None or extra > 1:
                self.malformed += 1
                continue
            try:
                message = decode_from_executor(header.buffer)
            except MalformedMessage:
                self.malformed += 1
                continue
            peer_pid = _peer_pid(header) if type(message) is Hello else 0
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
        send = self._socket.send
        try:
            # A full queue or an unknown peer shows at the first frame; the others then always follow.
            send(self._identity(executor, incarnation), _NOBLOCK_MORE)
            if body is None:
                send(encode(message), _NOBLOCK)
            else:
                send(encode(message), _NOBLOCK_MORE)
                send(body, _NOBLOCK, copy=len(body) < ZERO_COPY_FROM_BYTES)
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

    def _who(self, sender: bytes) -> tuple[ExecutorName, Incarnation] | None:
        """Name and incarnation of a sender; remembered, because the same few send all messages."""
        who = self._senders.get(sender)
        if who is None:
            who = parse_identity(sender)
            if who is not None:
                self._remember(sender, who)
        return who

    def _identity(self, executor: ExecutorName, incarnation: Incarnation) -> bytes:
        known = self._identities.get((executor, incarnation))
        if known is None:
            known = identity(executor, incarnation)
            self._remember(known, (executor, incarnation))
        return known

    def _remember(self, name: bytes, who: tuple[ExecutorName, Incarnation]) -> None:
        if len(self._senders) >= _REMEMBERED_MAX:
            self._senders.clear()
            self._identities.clear()
        self._senders[name] = who
        self._identities[who] = name


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
        """Edge-triggered descriptor: after each wake-up and each send, receive until nothing is left."""
        return int(self._socket.getsockopt(zmq.FD))

    def readable(self) -> bool:
        """True when a message waits. Call after every send: a send may swallow the edge of ``fileno``."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def receive(self, limit: int = 256) -> list[tuple[FromSupervisor, bytes | None]]:
        """Take the messages that are ready, at most ``limit``; never blocks, skips malformed ones."""
        taken: list[tuple[FromSupervisor, bytes | None]] = []
        receive = self._socket.recv
        while len(taken) < limit:
            try:
                header = receive(_NOBLOCK, copy=False)
            except zmq.Again:
                break
            body: bytes | None = None
            extra, last = 0, header
            while last.more:
                last = receive(_NOBLOCK, copy=False)
                extra += 1
                body = last.bytes
            try:
                if extra > 1:
                    raise MalformedMessage(f"{extra + 1} frames, expected 1 or 2")
                message = decode_from_supervisor(header.buffer)
            except MalformedMessage:
                self.malformed += 1
                continue
            taken.append((message, body))
        return taken

    def send(self, message: FromExecutor, body: bytes | None = None) -> None:
        """Send a message.

        Raises:
            BackPressure: the supervisor does not read.
        """
        try:
            if body is None:
                self._socket.send(encode(message), _NOBLOCK)
            else:
                self._socket.send(encode(message), _NOBLOCK_MORE)
                self._socket.send(body, _NOBLOCK, copy=len(body) < ZERO_COPY_FROM_BYTES)
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
