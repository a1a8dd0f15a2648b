"""What waits to be written on a WebSocket: masked frames in order, and long messages masked bit by bit.

A long message (a result that lies in a file) is never held in memory as a whole: its frame is made while
the socket takes it.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from gpuward_supervisor.sources.websocket_frames import TEXT, frame_header, mask

#: Largest piece handed to the socket at once. Over TLS a write counts as done only as a whole, and a
#: peer that takes bytes slowly must be seen to take them.
PIECE_BYTES = 64 * 1024
_KEYS_AT_ONCE = 256


class Chunks(Iterator[bytes], Protocol):
    """The pieces of a long message, none of them empty; closed when no more are wanted."""

    def close(self) -> None:
        """Free what they come from."""


class _LongFrame:
    """The rest of one long frame: what is still to be masked."""

    def __init__(self, before: bytes, chunks: Chunks, after: bytes, size_bytes: int, key: bytes) -> None:
        self.left_bytes = size_bytes
        self._chunks = chunks
        self._pieces = itertools.chain((before,), chunks, (after,))
        self._key = key

    def next_masked(self) -> bytes:
        chunk = next(self._pieces, b"")
        if not chunk or len(chunk) > self.left_bytes:
            raise OSError(
                f"a message in pieces is {self.left_bytes} bytes from its end: expected exactly those"
            )
        masked = mask(self._key, chunk)
        turn = len(chunk) % 4
        self._key = self._key[turn:] + self._key[:turn]
        self.left_bytes -= len(chunk)
        if not self.left_bytes and next(self._pieces, b""):
            raise OSError("a message in pieces is longer than was said")
        return masked

    def close(self) -> None:
        self._chunks.close()


class FrameWriter:
    """The output of one connection, in the order in which it was added."""

    def __init__(self) -> None:
        self._ready = bytearray()
        #: Not empty only while a long frame is being written: what comes behind it.
        self._waiting: deque[bytes | _LongFrame] = deque()
        self._waiting_bytes = 0
        self._keys = b""
        self._keys_used = 0
        #: Bytes that the socket has taken so far.
        self.taken_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._ready) + self._waiting_bytes

    def add(self, opcode: int, payload: bytes) -> None:
        """Add one whole frame."""
        key = self._new_key()
        frame = frame_header(opcode, len(payload)) + key + mask(key, payload)
        if self._waiting:
            self._waiting.append(frame)
            self._waiting_bytes += len(frame)
        else:
            self._ready += frame

    def add_long_text(self, before: bytes, chunks: Chunks, chunks_bytes: int, after: bytes) -> None:
        """Add one text message whose middle is read piece by piece while it is written.

        Args:
            before: its beginning.
            chunks: its middle; asked for as late as possible, and closed in the end.
            chunks_bytes: length of the middle. Another length breaks the connection, for the
                frame has begun by then.
            after: its end.
        """
        key = self._new_key()
        size_bytes = len(before) + chunks_bytes + len(after)
        header = frame_header(TEXT, size_bytes) + key
        self._waiting.append(header)
        self._waiting.append(_LongFrame(before, chunks, after, size_bytes, key))
        self._waiting_bytes += len(header) + size_bytes

    def write_to(self, send: Callable[[memoryview], int]) -> None:
        """Hand bytes to ``send`` until none are left.

        Raises:
            OSError: whatever ``send`` raises, also for "not now"; nothing is lost, call again.
        """
        while self._ready or self._refill():
            with memoryview(self._ready) as whole, whole[:PIECE_BYTES] as piece:
                taken = send(piece)
            self.taken_bytes += taken
            if taken == len(self._ready):
                self._ready.clear()
            else:
                del self._ready[:taken]

    def clear(self) -> None:
        """Forget everything: the connection is gone."""
        self._ready.clear()
        for frame in self._waiting:
            if isinstance(frame, _LongFrame):
                frame.close()
        self._waiting.clear()
        self._waiting_bytes = 0

    def _refill(self) -> bool:
        while self._waiting and len(self._ready) < PIECE_BYTES:
            first = self._waiting[0]
            if isinstance(first, bytes):
                self._ready += first
                self._waiting_bytes -= len(first)
                self._waiting.popleft()
                continue
            if first.left_bytes:
                masked = first.next_masked()
                self._ready += masked
                self._waiting_bytes -= len(masked)
            if not first.left_bytes:
                first.close()
                self._waiting.popleft()
        return bool(self._ready)

    def _new_key(self) -> bytes:
        # One system call per 256 frames; each key is still as unpredictable as RFC 6455 wants it.
        if self._keys_used >= len(self._keys):
            self._keys = os.urandom(4 * _KEYS_AT_ONCE)
            self._keys_used = 0
        start = self._keys_used
        self._keys_used = start + 4
        return self._keys[start : start + 4]
