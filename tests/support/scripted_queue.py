"""A Casola queue that does exactly what a test tells it: raw sockets, every frame under the test's control.

A peer's stack reads and answers pings by itself (unless told not to); everything else waits for the test.
"""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import socket
import ssl
import struct
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: Bound of every wait in seconds; far above what a healthy machine needs.
PATIENCE_S = 20.0
#: Certificate and key of ``localhost``, for tests only, good until 2120.
TLS_FILE = Path(__file__).parent / "localhost.pem"

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A server's frame: not masked."""
    head = bytes([(0x80 if final else 0) | opcode])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    if len(payload) < 65536:
        return head + b"\x7e" + struct.pack("!H", len(payload)) + payload
    return head + b"\x7f" + struct.pack("!Q", len(payload)) + payload


def job_message(job_id: str = "j1", **fields: Any) -> dict[str, Any]:
    """A ``job`` as the queue sends it."""
    job = {
        "type": "job",
        "job_id": job_id,
        "mode": "persisted",
        "config_id": "default",
        "payload": {"task": "openai/chat-completion", "messages": []},
        "fence_token": 1,
    }
    return job | fields


class QueueConnection:
    """One worker's connection, from the queue's side."""

    def __init__(
        self, opened: socket.socket, headers: dict[str, str], path: str, answers_pings: bool
    ) -> None:
        self.headers = headers
        self.path = path
        self.answers_pings = answers_pings
        self._socket = opened
        self._lock = threading.Lock()
        self._messages: queue.Queue[bytes | None] = queue.Queue()
        #: Pings that came, oldest first.
        self.pings: list[bytes] = []
        #: Payload of the worker's close frame.
        self.close_payload: bytes | None = None
        self._reading = threading.Event()
        self._reading.set()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    # what the queue does

    def send_raw(self, data: bytes) -> None:
        with self._lock:
            self._socket.sendall(data)

    def send(self, message: object) -> None:
        self.send_text(json.dumps(message).encode())

    def send_text(self, text: bytes) -> None:
        self.send_raw(frame(TEXT, text))

    def pong(self, payload: bytes) -> None:
        self.send_raw(frame(PONG, payload))

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame and, as a server does, end the stream behind it."""
        self.send_raw(frame(CLOSE, struct.pack("!H", code) + reason.encode()))
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Reset the connection, without a close frame."""
        raw = self._socket
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closed from another thread a socket stays open while that thread reads: shut it down first.
        with suppress(OSError):
            raw.shutdown(socket.SHUT_RD)
        self._thread.join(PATIENCE_S)
        raw.close()

    def stop_reading(self) -> None:
        """Take nothing off the socket after the frame that is being read, until ``go_on_reading``."""
        self._reading.clear()

    def go_on_reading(self) -> None:
        self._reading.set()

    # what the worker did

    def next_bytes(self) -> bytes:
        """The next text message."""
        message = self._messages.get(timeout=PATIENCE_S)
        if message is None:
            raise AssertionError("the worker's connection ended: expected a message")
        return message

    def next(self) -> Any:
        """The next text message, decoded."""
        return json.loads(self.next_bytes())

    def nothing_came(self) -> bool:
        """No message waits; true for certain only after something that came later was seen."""
        return self._messages.empty()

    def wait_ended(self) -> None:
        """Wait until the worker has ended the connection; messages before that are dropped."""
        while self._messages.get(timeout=PATIENCE_S) is not None:
            pass

    def end(self) -> None:
        """Close the socket; harmless when it is closed."""
        self._reading.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._socket.close()

    # the stack

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as stream:
                while True:
                    self._reading.wait()
                    if not self._read_frame(stream):
                        break
        except (OSError, ValueError):
            pass
        self._messages.put(None)

    def _read_frame(self, stream: Any) -> bool:
        head = stream.read(2)
        if len(head) < 2:
            return False
        assert head[0] & 0x80, "the worker sends whole messages"
        assert head[1] & 0x80, "a client's frame is masked"
        length = head[1] & 0x7F
        if length == 126:
            length = struct.unpack("!H", stream.read(2))[0]
        elif length == 127:
            length = struct.unpack("!Q", stream.read(8))[0]
        key = stream.read(4)
        masked = stream.read(length)
        if len(masked) < length:
            return False
        pad = (key * (length // 4 + 1))[:length]
        payload = (int.from_bytes(masked, "big") ^ int.from_bytes(pad, "big")).to_bytes(length, "big")
        opcode = head[0] & 0x0F
        if opcode == PING:
            self.pings.append(payload)
            if self.answers_pings:
                self.pong(payload)
        elif opcode == CLOSE:
            self.close_payload = payload
            with suppress(OSError):
                self.send_raw(frame(CLOSE, payload[:2]))
                self._socket.shutdown(socket.SHUT_WR)
        elif opcode == TEXT:
            self._messages.put(payload)
        return True


class ScriptedQueue:
    """Listens on a free port; hands each connection to the test."""

    def __init__(self, *, tls: bool = False, answers_pings: bool = True) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(TLS_FILE)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'wss' if tls else 'ws'}://localhost:{self.port}"
        #: HTTP statuses that the next upgrades are refused with.
        self.refuse: deque[int] = deque()
        #: Upgrades that are not answered at all.
        self.silent = False
        self.answers_pings = answers_pings
        self._arrived: queue.Queue[QueueConnection] = queue.Queue()
        self._refused: queue.Queue[dict[str, str]] = queue.Queue()
        self._all: list[QueueConnection] = []
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def accept(self) -> QueueConnection:
        """The next connection whose upgrade was granted."""
        return self._arrived.get(timeout=PATIENCE_S)

    def refused(self) -> dict[str, str]:
        """The headers of the next upgrade that was refused or left without an answer."""
        return self._refused.get(timeout=PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._listener.close()
        for connection in self._all:
            connection.end()
        for held in self._held:
            held.close()

    def _accept(self) -> None:
        while True:
            try:
                opened, _ = self._listener.accept()
            except OSError:
                return
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                if self._context is not None:
                    opened = self._context.wrap_socket(opened, server_side=True)
                self._upgrade(opened)
            except (OSError, EOFError):
                opened.close()

    def _upgrade(self, opened: socket.socket) -> None:
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            piece = opened.recv(4096)
            if not piece:
                raise EOFError
            data += piece
        request, *lines = data.decode().strip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        if self.silent:
            self._held.append(opened)
            self._refused.put(headers)
            return
        if self.refuse:
            status = self.refuse.popleft()
            opened.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 6\r\nLocation: /x\r\n\r\nsecret" % status)
            opened.close()
            self._refused.put(headers)
            return
        key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        opened.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
        )
        connection = QueueConnection(opened, headers, request.split(" ")[1], self.answers_pings)
        self._all.append(connection)
        self._arrived.put(connection)
