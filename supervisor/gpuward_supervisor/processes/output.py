"""What an executor and its engine print: read without waiting, cut into bounded lines, the last ones kept."""

from __future__ import annotations

import os
from collections import deque

#: Longest line, in bytes; the rest of a longer one is left out.
LINE_MAX_BYTES = 8 * 1024
#: The last lines that are kept as evidence: their number, and their size together.
TAIL_LINES = 200
TAIL_BYTES = 64 * 1024
#: Read in one turn of the loop at most, in bytes: one noisy engine must not hold up the others.
TURN_BYTES = 64 * 1024
#: Read after the death at most, in bytes: an escaped grandchild may hold the pipe and go on writing.
FINISH_BYTES = 1024 * 1024
#: Lines passed on per second in the long run, and at once; the others are counted and kept in the tail. This
#: guards the loop's time; what the log takes of them is for its relay to decide.
LINES_PER_S = 2000.0
LINES_BURST = 5000.0

_CUT = " … (line cut)"


class OutputReader:
    """The lines of one pipe."""

    def __init__(self, fd: int, now_s: float) -> None:
        """Read from a pipe.

        Args:
            fd: its read end, non-blocking; becomes the reader's own.
            now_s: monotonic seconds.
        """
        self._fd = fd
        self._partial = bytearray()
        self._skipping = False
        self._tail: deque[str] = deque()
        self._tail_bytes = 0
        self._budget = LINES_BURST
        self._budget_at_s = now_s
        self._left_out = 0
        #: True once nobody can write any more.
        self.ended = False

    def fileno(self) -> int:
        """The pipe."""
        return self._fd

    @property
    def tail(self) -> list[str]:
        """The last lines, oldest first."""
        return list(self._tail)

    def read(self, now_s: float, limit_bytes: int = TURN_BYTES) -> list[str]:
        """Complete lines that have arrived, at most ``limit_bytes`` of them; the rest waits."""
        lines: list[str] = []
        while limit_bytes > 0 and not self.ended:
            try:
                data = os.read(self._fd, min(limit_bytes, TURN_BYTES))
            except BlockingIOError:
                break
            if not data:
                self.ended = True
                break
            limit_bytes -= len(data)
            self._feed(data, now_s, lines)
        return lines

    def finish(self, now_s: float) -> list[str]:
        """What is still in the pipe, an unfinished last line included; closes the pipe."""
        lines = self.read(now_s, FINISH_BYTES)
        if self._partial and not self._skipping:
            self._emit(bytes(self._partial), now_s, lines)
            self._partial.clear()
        if self._left_out:
            self._budget = 1.0
            self._say_left_out(lines)
        self.close()
        return lines

    def close(self) -> None:
        """Close the pipe; the tail stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.ended = True

    def _feed(self, data: bytes, now_s: float, lines: list[str]) -> None:
        *complete, rest = data.split(b"\n")
        for piece in complete:
            if self._skipping:
                self._skipping = False
                continue
            if self._partial:
                piece = bytes(self._partial) + piece
                self._partial.clear()
            self._emit(piece, now_s, lines)
        if self._skipping:
            return
        self._partial += rest
        # A progress bar overwrites its line again and again: only what a terminal would show is kept.
        overwritten = self._partial.rfind(b"\r", 0, -1)
        if overwritten >= 0:
            del self._partial[: overwritten + 1]
        if len(self._partial) > LINE_MAX_BYTES:
            self._emit(bytes(self._partial), now_s, lines)
            self._partial.clear()
            self._skipping = True

    def _emit(self, raw: bytes, now_s: float, lines: list[str]) -> None:
        raw = raw.rstrip()
        raw = raw[raw.rfind(b"\r") + 1 :]
        if not raw:
            return
        line = raw[:LINE_MAX_BYTES].decode(errors="replace") + (_CUT if len(raw) > LINE_MAX_BYTES else "")
        self._keep(line)
        self._budget = min(LINES_BURST, self._budget + (now_s - self._budget_at_s) * LINES_PER_S)
        self._budget_at_s = now_s
        if self._budget < 1.0:
            self._left_out += 1
            return
        self._say_left_out(lines)
        self._budget -= 1.0
        lines.append(line)

    def _say_left_out(self, lines: list[str]) -> None:
        if self._left_out:
            lines.append(f"… ({self._left_out} lines left out: more than {LINES_PER_S:g} per second)")
            self._left_out = 0

    def _keep(self, line: str) -> None:
        self._tail.append(line)
        self._tail_bytes += len(line)
        while len(self._tail) > TAIL_LINES or self._tail_bytes > TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())
