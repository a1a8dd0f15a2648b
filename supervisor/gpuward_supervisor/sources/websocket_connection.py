"""One open WebSocket that never blocks: many frames per read, buffered output, its own keepalive.

It starts where the upgrade ends. Nothing here raises on a broken connection: ``lost`` says why it is gone,
so that what was read before can still be used. Only one thread may touch it.
"""

from __future__ import annotations

import array
import fcntl
import socket
import ssl
import termios
import time
from collections import deque
from collections.abc import Callable
from typing import assert_never

import msgspec

from gpuward_supervisor.sources.websocket_frames import (
    CLOSE,
    NO_STATUS,
    NORMAL_CLOSURE,
    PING,
    PONG,
    TEXT,
    Binary,
    CloseFrame,
    FrameReader,
    Oversized,
    Ping,
    Pong,
    Violation,
    close_payload,
)
from gpuward_supervisor.sources.websocket_writer import Chunks, FrameWriter

#: Largest read, in bytes.
READ_BYTES = 256 * 1024
#: Pongs are left out while more than this waits to be written: a peer that pings but does not read.
_PONG_BACKLOG_BYTES = 1024 * 1024

#: What comes out of a connection: text messages (their bytes), answers to our own pings, and oddities.
Received = bytes | bytearray | Pong | Binary | Oversized

_TRY_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _PingSent(msgspec.Struct, frozen=True, gc=False):
    payload: bytes
    #: The writer's ``taken_bytes`` at which the ping is out of our hands.
    mark_bytes: int
    keepalive: bool


class WebSocketConnection:
    """An open connection."""

    def __init__(
        self,
        opened: socket.socket,
        *,
        message_max_bytes: int,
        ping_interval_s: float,
        pong_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over a socket whose upgrade is done.

        Args:
            opened: the socket; it becomes this object's own and is made non-blocking.
            message_max_bytes: longer text messages come out as ``Oversized``.
            ping_interval_s: seconds between two pings.
            pong_timeout_s: seconds to wait for a pong while nothing else shows that the peer reads.
            clock: monotonic seconds.
        """
        opened.setblocking(False)
        self._socket = opened
        self._tls = opened if isinstance(opened, ssl.SSLSocket) else None
        self._clock = clock
        self._reader = FrameReader(message_max_bytes)
        self._writer = FrameWriter()
        self._scratch = memoryview(bytearray(READ_BYTES))
        self._ping_interval_s = ping_interval_s
        self._pong_timeout_s = pong_timeout_s
        self._ping_at_s = clock() + ping_interval_s
        self._pings: deque[_PingSent] = deque()
        self._pings_sent = 0
        #: The keepalive ping that waits for its pong, and until when.
        self._awaited: _PingSent | None = None
        self._pong_by_s = 0.0
        self._acknowledged_bytes = 0
        self._closing = False
        #: Why the connection is gone; empty while it is open.
        self.lost = ""
        #: Code of the peer's close frame, 0 when there was none.
        self.close_code = 0
        #: More input may wait than a poll of the descriptor would tell.
        self.unread = False
        #: Bytes read so far.
        self.received_bytes = 0

    def fileno(self) -> int:
        """The descriptor to poll; -1 when the connection is gone."""
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Output waits: poll for writability and call ``flush``."""
        return self._writer.size_bytes > 0

    @property
    def unwritten_bytes(self) -> int:
        """Bytes of output that the socket has not taken yet."""
        return self._writer.size_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes that the socket has taken so far."""
        return self._writer.taken_bytes

    def receive(self) -> list[Received]:
        """Read what is there, at most once ``READ_BYTES``; pings and close frames are answered here."""
        data = self._read()
        if not data:
            return []
        received: list[Received] = []
        for item in self._reader.feed(data):
            if isinstance(item, (bytes, bytearray, Oversized, Binary)):
                received.append(item)
                continue
            match item:
                case Pong():
                    received += self._answered(item)
                case Ping():
                    if self._writer.size_bytes < _PONG_BACKLOG_BYTES:
                        self._writer.add(PONG, item.payload)
                case CloseFrame():
                    self._closed_by_peer(item)
                case Violation():
                    self._writer.add(CLOSE, close_payload(item.code, item.reason))
                    self.flush()
                    self._lose(f"the peer broke the protocol: {item.reason} (closed with {item.code})")
                case _:
                    assert_never(item)
        if self._awaited is not None and self._reader.inside_message:
            # A pong cannot come in the middle of a long frame.
            self._pong_by_s = self._clock() + self._pong_timeout_s
        return received

    def write(self, message: bytes) -> None:
        """Queue one text message."""
        self._writer.add(TEXT, message)

    def write_long(self, before: bytes, chunks: Chunks, chunks_bytes: int, after: bytes) -> None:
        """Queue one text message whose middle is read piece by piece while the socket takes it."""
        self._writer.add_long_text(before, chunks, chunks_bytes, after)

    def ping(self, payload: bytes) -> None:
        """Queue a ping; its pong, or that of a later one, comes out of ``receive`` as ``Pong(payload)``."""
        self._add_ping(payload, keepalive=False)

    def flush(self) -> None:
        """Write as much as the socket takes."""
        if self.lost or not self._writer.size_bytes:
            return
        before = self._writer.taken_bytes
        try:
            self._writer.write_to(self._socket.send)
        except _TRY_LATER:
            pass
        except OSError as error:
            self._lose(f"writing failed: {error}")
        if self._awaited is not None and before < self._awaited.mark_bytes and before < self.sent_bytes:
            self._pong_by_s = self._clock() + self._pong_timeout_s

    def tick(self, now_s: float) -> None:
        """Do what is due: ping the peer, or give up on it. Call it at ``next_deadline`` or later."""
        if self.lost:
            return
        if self._awaited is not None and now_s >= self._pong_by_s:
            if not self._peer_takes_bytes():
                self._lose(f"no pong within {self._pong_timeout_s:g} s of a ping")
                return
            self._pong_by_s = now_s + self._pong_timeout_s
        if now_s >= self._ping_at_s:
            self._ping_at_s = now_s + self._ping_interval_s
            if self._awaited is None and not self._closing:
                self._pings_sent += 1
                self._add_ping(b"k%d" % self._pings_sent, keepalive=True)
                self._pong_by_s = now_s + self._pong_timeout_s

    def not_reading(self, now_s: float) -> None:
        """Say, and say again while it holds, that a pong may wait unread: the peer is not late."""
        if self._awaited is not None:
            self._pong_by_s = now_s + self._pong_timeout_s

    def next_deadline(self) -> float:
        """When ``tick`` has something to do, on the clock."""
        return self._ping_at_s if self._awaited is None else min(self._ping_at_s, self._pong_by_s)

    def begin_close(self, code: int = NORMAL_CLOSURE, reason: str = "") -> None:
        """Queue a close frame; the connection is ``lost`` when the peer has answered it."""
        self._closing = True
        self._writer.add(CLOSE, close_payload(code, reason))

    def drop(self, reason: str) -> None:
        """Close the socket at once, without a close frame."""
        self._lose(reason)

    def _read(self) -> bytes:
        self.unread = False
        if self.lost:
            return b""
        filled = 0
        scratch = self._scratch
        try:
            filled = self._socket.recv_into(scratch)
            if filled:
                # One TLS read gives one record, and what OpenSSL holds already no poll will announce.
                while self._tls is not None and self._tls.pending() and filled < READ_BYTES:
                    filled += self._tls.recv_into(scratch[filled:])
            else:
                self._lose("closed by the peer without a close frame")
        except _TRY_LATER:
            pass
        except OSError as error:
            self._lose(f"reading failed: {error}")
        self.unread = filled == READ_BYTES or (self._tls is not None and filled > 0)
        self.received_bytes += filled
        return bytes(scratch[:filled])

    def _add_ping(self, payload: bytes, *, keepalive: bool) -> None:
        self._writer.add(PING, payload)
        sent = _PingSent(payload, self._writer.taken_bytes + self._writer.size_bytes, keepalive)
        self._pings.append(sent)
        if keepalive:
            self._awaited = sent
            self._acknowledged_bytes = self._count_acknowledged()

    def _answered(self, pong: Pong) -> list[Pong]:
        """The pings this pong answers: its own and, a peer may skip some, every earlier one."""
        if all(sent.payload != pong.payload for sent in self._pings):
            return []
        answered: list[Pong] = []
        while True:
            sent = self._pings.popleft()
            if sent.keepalive:
                self._awaited = None
            else:
                answered.append(Pong(sent.payload))
            if sent.payload == pong.payload:
                return answered

    def _peer_takes_bytes(self) -> bool:
        """The ping is still in our kernel, behind bytes that the peer goes on taking over a slow line."""
        acknowledged = self._count_acknowledged()
        moved = acknowledged > self._acknowledged_bytes
        self._acknowledged_bytes = acknowledged
        return moved and self._awaited is not None and acknowledged < self._awaited.mark_bytes

    def _count_acknowledged(self) -> int:
        """Bytes that have left our kernel's send queue for good; over TLS a little too few."""
        in_kernel = array.array("i", [0])
        fcntl.ioctl(self._socket, termios.TIOCOUTQ, in_kernel)
        return self.sent_bytes - in_kernel[0]

    def _closed_by_peer(self, frame: CloseFrame) -> None:
        self.close_code = frame.code
        if not self._closing:
            code = NORMAL_CLOSURE if frame.code == NO_STATUS else frame.code
            self._writer.add(CLOSE, close_payload(code, ""))
            self.flush()
        self._lose(f"closed by the peer with {frame.code} {frame.reason}".rstrip())

    def _lose(self, reason: str) -> None:
        if not self.lost:
            self.lost = reason
        self.unread = False
        self._writer.clear()
        self._socket.close()
