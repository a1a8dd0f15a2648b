"""A WebSocket queue that does nothing but keep a window of echo jobs in flight and time them.

As lean as Python allows (own frame parsing on an asyncio protocol), so that what is measured is the worker
and not the queue. It speaks just enough of the Casola protocol: register in, job out, job_result in.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import struct
import time
from typing import Self

_KEY = re.compile(rb"sec-websocket-key:\s*(\S+)", re.IGNORECASE)
_JOB_ID = re.compile(rb'"job_id":\s*"(\d+)"')
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """One unmasked, final frame."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


def unmask(payload: bytes, mask: bytes) -> bytes:
    """Undo the client's masking."""
    size = len(payload)
    pattern = mask * (size // 4 + 1)
    plain = int.from_bytes(payload, "big") ^ int.from_bytes(pattern[:size], "big")
    return plain.to_bytes(size, "big")


class ClosedLoop(asyncio.Protocol):
    """One worker connection; drives one round at a time."""

    def __init__(self, connected: asyncio.Future[ClosedLoop], mode: str, payload: bytes) -> None:
        self._connected = connected
        self._head = b'{"type":"job","mode":"' + mode.encode() + b'","config_id":"bench","payload":' + payload
        self._buffer = bytearray()
        self._open = False
        self._sent_at: dict[int, float] = {}
        self._latencies: list[float] = []
        self._next = 0
        self._left = 0
        self._done: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self.registered = asyncio.get_running_loop().create_future()
        self.capacity = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._open:
            if b"\r\n\r\n" not in self._buffer:
                return
            self._handshake()
        out: list[bytes] = []
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 6:
            size, start = buffer[at + 1] & 0x7F, at + 2
            if size == 126:
                size, start = int.from_bytes(buffer[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(buffer[at + 2 : at + 10], "big"), at + 10
            end = start + 4 + size
            if len(buffer) < end:
                break
            opcode = buffer[at] & 0x0F
            text = unmask(bytes(buffer[start + 4 : end]), bytes(buffer[start : start + 4]))
            at = end
            if opcode == 9:
                out.append(frame(text, 10))
            elif opcode == 8:
                break
            elif opcode == 1:
                self._frame(text, out)
        del buffer[:at]
        if out and self._transport is not None:
            self._transport.write(b"".join(out))

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError(f"the worker's connection was lost: {error}"))

    async def round(self, jobs: int, window: int) -> tuple[float, list[float]]:
        """Run ``jobs`` jobs with ``window`` in flight; returns the seconds and each job's latency."""
        assert self._transport is not None
        self._latencies = []
        self._left = jobs
        self._issue = jobs
        self._done = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        self._transport.write(b"".join([self._job() for _ in range(min(window, jobs))]))
        await self._done
        return time.perf_counter() - started, self._latencies

    def _handshake(self) -> None:
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        key = _KEY.search(head)
        assert key is not None and self._transport is not None
        accept = base64.b64encode(hashlib.sha1(key.group(1) + _GUID).digest())
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self._buffer = bytearray(rest)
        self._open = True

    def _job(self) -> bytes:
        self._next += 1
        self._issue -= 1
        number = self._next
        self._sent_at[number] = time.perf_counter()
        return frame(self._head + b',"job_id":"%d","fence_token":%d}' % (number, number))

    def _frame(self, text: bytes, out: list[bytes]) -> None:
        if text.startswith((b'{"type":"job_result"', b'{"type": "job_result"')):
            found = _JOB_ID.search(text, 0, 80)
            assert found is not None, text[:100]
            self._latencies.append(time.perf_counter() - self._sent_at.pop(int(found.group(1))))
            self._left -= 1
            if self._issue > 0:
                out.append(self._job())
            if self._left == 0 and self._done is not None:
                self._done.set_result(None)
        elif b'"register"' in text:
            found_capacity = re.search(rb'"capacity":\s*(\d+)', text)
            self.capacity = int(found_capacity.group(1)) if found_capacity else 0
            if not self.registered.done():
                self.registered.set_result(None)
                self._connected.set_result(self)
        elif b'"job_error"' in text and self._done is not None and not self._done.done():
            self._done.set_exception(RuntimeError(text.decode()[:500]))


class Server:
    """Listens on a free port of 127.0.0.1 and hands out the first worker that registers."""

    def __init__(self, mode: str = "transient", payload_bytes: int = 200) -> None:
        self._mode = mode
        filler = b"x" * max(0, payload_bytes - 24)
        self._payload = b'{"task":"echo","data":"' + filler + b'"}'
        self._server: asyncio.Server | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.worker: asyncio.Future[ClosedLoop] = loop.create_future()
        self._server = await loop.create_server(
            lambda: ClosedLoop(self.worker, self._mode, self._payload), "127.0.0.1", 0
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
