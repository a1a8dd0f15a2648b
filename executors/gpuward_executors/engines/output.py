"""The output of an engine's process: bounded lines, the last of them kept, none of it blocking anybody."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable

#: Longer lines are cut: vLLM dumps its whole scheduler state into one line when it dies.
LINE_MAX_BYTES = 8 * 1024
LINES_KEPT = 200
CUT = " …[cut]"
_READ_BYTES = 64 * 1024
#: Reads that a dead engine's pipe gets at most: its grandchildren may still write.
_DRAIN_READS = 64


class EngineOutput:
    """Reads the pipe that an engine's stdout and stderr share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, on_line: Callable[[str], None]) -> None:
        """Begin to read.

        Args:
            loop: wakes the reader.
            fd: read end of the pipe; closed by this object.
            on_line: takes each line, without its newline and at most ``LINE_MAX_BYTES`` long.
        """
        self._loop = loop
        self._fd = fd
        self._on_line = on_line
        self._part = bytearray()
        #: The rest of an overlong line is being skipped.
        self._skipping = False
        self._open = True
        #: The last lines.
        self.last: deque[str] = deque(maxlen=LINES_KEPT)
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._read)

    def drain(self) -> None:
        """Take what the pipe holds now, and the unfinished line at its end. Call when the process is gone."""
        for _ in range(_DRAIN_READS):
            if not self._open or not self._read():
                break
        self._take_part()

    def close(self) -> None:
        """Stop reading."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _read(self) -> bool:
        """Read once; False when nothing was there."""
        try:
            chunk = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not chunk:
            self._take_part()
            self.close()
            return False
        self._split(chunk)
        return True

    def _split(self, chunk: bytes) -> None:
        first, *others = chunk.split(b"\n")
        self._append(first)
        for piece in others:
            self._take_part()
            self._skipping = False
            self._append(piece)

    def _append(self, piece: bytes) -> None:
        if self._skipping:
            return
        self._part += piece
        if len(self._part) > LINE_MAX_BYTES:
            del self._part[LINE_MAX_BYTES - len(CUT.encode()) :]
            self._take_part(CUT)
            self._skipping = True

    def _take_part(self, mark: str = "") -> None:
        if not self._part:
            return
        line = self._part.decode("utf-8", "replace").rstrip("\r") + mark
        self._part.clear()
        self.last.append(line)
        self._on_line(line)
