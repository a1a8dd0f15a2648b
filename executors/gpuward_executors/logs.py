"""An executor's log: JSON lines on standard output, which the supervisor relays; never blocks the loop.

Two kinds of lines: ``{"source":"executor","level":…,"event":…,…facts}`` and, relayed from the engine,
``{"source":"engine","level":…,"line":…}``.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

#: Bytes that may wait for a reader; lines beyond are dropped and counted.
BUFFER_MAX_BYTES = 1024 * 1024
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

Fact = str | int | float | bool | None
_encode = msgspec.json.Encoder().encode


class Logs:
    """Writes lines to a descriptor; owned by the event loop."""

    def __init__(self, fd: int, level: str = "info", loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Take a descriptor over.

        Args:
            fd: where lines go; a pipe or socket is made non-blocking, anything else is written to directly.
            level: lowest level of the executor's own lines, ``debug`` … ``error``.
            loop: waits for a slow reader; without it, what does not fit at once is dropped.
        """
        self._fd = fd
        self._lowest = _LEVELS.get(level, 20)
        self._loop = loop
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        #: Lines lost because nobody read.
        self.dropped = 0
        mode = os.fstat(fd).st_mode
        # A terminal's description is shared with the shell: making that non-blocking would break it.
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            os.set_blocking(fd, False)

    def log(self, level: str, event: str, facts: Mapping[str, Fact] | None = None) -> None:
        """Write a line of the executor's own."""
        if _LEVELS.get(level, 20) < self._lowest:
            return
        line: dict[str, Fact] = {
            "ts": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "source": "executor",
            "level": level,
            "event": event,
        }
        if facts:
            line.update(facts)
        self._write(_encode(line) + b"\n")

    def relay(self, level: str, line: str) -> None:
        """Write a line that the engine wrote."""
        self._write(_encode({"source": "engine", "level": level, "line": line}) + b"\n")

    def flush(self) -> None:
        """Write what waits, as far as it goes without waiting."""
        while self._waiting:
            head = self._waiting.popleft()
            self._waiting_bytes -= len(head)
            rest = self._write_now(head)
            if rest:
                self._waiting.appendleft(rest)
                self._waiting_bytes += len(rest)
                return
        if self._loop is not None:
            self._loop.remove_writer(self._fd)

    def _write(self, line: bytes) -> None:
        if self._waiting:
            self._wait_with(line)
            return
        rest = self._write_now(line)
        if rest:
            if self._loop is None:
                self.dropped += 1
                return
            self._wait_with(rest)
            self._loop.add_writer(self._fd, self.flush)

    def _wait_with(self, line: bytes) -> None:
        if self._waiting_bytes + len(line) > BUFFER_MAX_BYTES:
            self.dropped += 1
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)

    def _write_now(self, line: bytes) -> bytes:
        """What could not be written without waiting; nothing once the reader is gone."""
        try:
            return line[os.write(self._fd, line) :]
        except BlockingIOError:
            return line
        except OSError:
            # Nobody will ever read this; the supervisor's end is noticed by other means.
            return b""
